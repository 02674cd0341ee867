"""Support completion in several shells: their scripts, and the formats of requests and answers.

A script calls the program with the name of its shell in a variable. The program prints one line per completion, with
fields separated by tabs: kind (plain, file, dir), value, description.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from backyfs.cli.bashline import BashLine, quoted
from backyfs.cli.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from click.shell_completion import CompletionItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A word to complete."""

    words: tuple[str, ...]   # the complete words before it
    option: tuple[str, ...]  # the option before a value in --option=value
    incomplete: str
    skipped: int = 0         # number of characters that the shell keeps and that must not be repeated
    quote: str = ""          # the opening quotes in which the value ends; empty: it is not in quotes
    expands: bool = False    # the shell would expand the value, such as $HOME

    @property
    def prefix(self) -> str:
        """The part of the word before the value."""
        return f"{self.option[0]}=" if self.option else ""


class Shell(Protocol):
    """The differences between shells."""

    script: str

    def asked(self, words: Sequence[str], environ: Mapping[str, str]) -> Asked:
        """Return the word to complete."""
        ...

    def line(self, item: CompletionItem[str], asked: Asked) -> str:
        """Return a completion in the format of the script."""
        ...


class _Bash:
    """Bash also ends words at @, : and =, and inserts completions without quoting them."""

    # COMP_LINE, not COMP_WORDS, which are split at an @.
    script = """\
# Completion of backyfs for bash. Put it where bash-completion looks, or into ~/.bashrc:
#   eval "$(backyfs completion bash)"
_backyfs_completion() {
    local kind value
    COMPREPLY=()
    while IFS=$'\\t' read -r kind value; do
        case $kind in
            plain) COMPREPLY+=("$value") ;;
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
        esac
    done < <(_BACKYFS_COMPLETE=bash COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" \\
        "${1/#\\~/$HOME}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=@] ]] && compopt -o nospace
    return 0
}
complete -o nosort -F _backyfs_completion backyfs
"""

    def asked(self, words: Sequence[str], environ: Mapping[str, str]) -> Asked:  # noqa: ARG002
        """Parse the line as bash does."""
        line = BashLine.of(environ.get("COMP_LINE", ""), environ.get("COMP_BREAKS", ""))
        asked = _asked(line.words[1:], line.last)
        return replace(asked, skipped=line.kept, quote=line.quote, expands=line.expands)

    def line(self, item: CompletionItem[str], asked: Asked) -> str:
        """Return kind and value: the part of the value that bash replaces, quoted for its position."""
        value = (asked.prefix + item.value)[asked.skipped :]
        return f"{item.type}\t{quoted(value, asked.quote)}"


class _Zsh:
    """Zsh quotes completions, and passes the words as the program would get them."""

    script = """\
#compdef backyfs
# Completion of backyfs for zsh. Save it as _backyfs in a directory of $fpath, or put into ~/.zshrc after compinit:
#   eval "$(backyfs completion zsh)"
_backyfs() {
    local -a values shown
    local kind value text
    while IFS=$'\\t' read -r kind value text; do
        case $kind in
            plain) values+=("$value"); shown+=("$value${text:+  -- $text}") ;;
            file) compset -P '--*='; _files ;;
            dir) compset -P '--*='; _files -/ ;;
        esac
    done < <(_BACKYFS_COMPLETE=zsh "${~words[1]}" "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)
    (( $#values )) && compadd -l -V backyfs -d shown -a values
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _backyfs "$@"
else
    compdef _backyfs backyfs
fi
"""

    def asked(self, words: Sequence[str], environ: Mapping[str, str]) -> Asked:  # noqa: ARG002
        """Use the words unchanged, and complete the last one."""
        return _asked(words[:-1], words[-1] if words else "")

    def line(self, item: CompletionItem[str], asked: Asked) -> str:
        """Return kind, value and description."""
        text = printable(" ".join((item.help or "").split()))
        return f"{item.type}\t{asked.prefix}{item.value}\t{text}".rstrip("\t")


class _Fish(_Zsh):
    """Fish works like zsh."""

    script = """\
# Completion of backyfs for fish. Save it as ~/.config/fish/completions/backyfs.fish
function __backyfs_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l option (string match -r -- '^--[^=]*=' $current)
    set -l value (string replace -r -- '^--[^=]*=' '' $current)
    for line in (env _BACKYFS_COMPLETE=fish $words (string unescape -- "$current"; or echo "$current") 2>/dev/null)
        set -l parts (string split -m 2 \\t -- $line)
        switch $parts[1]
            case plain
                string join \\t -- $parts[2..-1]
            case file
                printf '%s\\n' "$option"(__fish_complete_path $value)
            case dir
                printf '%s\\n' "$option"(__fish_complete_directories $value)
        end
    end
end
complete -c backyfs -f -a '(__backyfs_complete)'
"""


SHELLS: dict[str, Shell] = {"bash": _Bash(), "zsh": _Zsh(), "fish": _Fish()}


def _asked(words: Sequence[str], incomplete: str) -> Asked:
    option, separator, value = incomplete.partition("=")
    if separator and option.startswith("--"):
        return Asked(words=tuple(words), option=(option,), incomplete=value)
    return Asked(words=tuple(words), option=(), incomplete=incomplete)
