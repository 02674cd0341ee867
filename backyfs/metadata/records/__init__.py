"""Read and write the rows of versions, blobs, jobs and the repository."""
