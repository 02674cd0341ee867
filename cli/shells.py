"""The shells that can complete our commands: their scripts, how they ask, and what they take for an answer.

A script calls the program with the name of its shell in a variable. It answers with a line per offer, fields
separated by tabs: kind (plain, file, dir), value, description.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from click.shell_completion import CompletionItem

_NOT_SAFE = re.compile(r"[^\w@%+=:,./~^-]", re.ASCII)  # what bash would take for syntax

_TAKEN_ALONG = "@$"  # readline's rl_special_prefixes, as bash sets them: the word to replace begins with them


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be completed."""

    words: tuple[str, ...]   # complete ones
    option: tuple[str, ...]  # the option in front of a value, where both are written as --option=value
    incomplete: str
    skipped: int = 0         # characters of the value that the shell keeps and does not want again
    quoted: bool = False     # within quotation marks

    @property
    def prefix(self) -> str:
        """What stands before the value in the same word."""
        return f"{self.option[0]}=" if self.option else ""


class Shell(Protocol):
    """What differs between shells."""

    script: str

    def asked(self, words: Sequence[str], environ: Mapping[str, str]) -> Asked:
        """Return what is to be completed."""
        ...

    def line(self, item: CompletionItem[str], asked: Asked) -> str:
        """Return an offer as the script takes it."""
        ...


class _Bash:
    """Bash has words that end at @, : and = as well, and inserts what it gets without quoting it."""

    # COMP_LINE and not COMP_WORDS, which are broken apart at an @.
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
        """Take the line apart as bash does."""
        found: list[str] = []
        word, kept, quote, escaped, begun = "", 0, "", False, False
        for char in environ.get("COMP_LINE", ""):
            if escaped:
                word, escaped = word + char, False
            elif char == "\\" and quote != "'":
                escaped = begun = True
            elif quote:
                word, quote = (word, "") if char == quote else (word + char, quote)
            elif char in "'\"":
                quote, begun = char, True
                kept = len(word)
            elif char.isspace():
                found, word, kept, begun = ([*found, word] if begun else found), "", 0, False
            else:
                if char in environ.get("COMP_BREAKS", ""):
                    kept = len(word) + (char not in _TAKEN_ALONG)
                word, begun = word + char, True
        asked = _asked(found[1:], word)
        return Asked(
            words=asked.words,
            option=asked.option,
            incomplete=asked.incomplete,
            skipped=kept,
            quoted=bool(quote),
        )

    def line(self, item: CompletionItem[str], asked: Asked) -> str:
        """Return kind and value; of the value what bash lets us replace."""
        value = (asked.prefix + item.value)[asked.skipped :]
        return f"{item.type}\t{value if asked.quoted else _NOT_SAFE.sub(_escaped, value)}"


class _Zsh:
    """Zsh quotes what it inserts, and gives the words as the program would get them."""

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
        """Take the words as they are; the last one is to be completed."""
        return _asked(words[:-1], words[-1] if words else "")

    def line(self, item: CompletionItem[str], asked: Asked) -> str:
        """Return kind, value and description."""
        text = " ".join((item.help or "").split())
        return f"{item.type}\t{asked.prefix}{item.value}\t{text}".rstrip("\t")


class _Fish(_Zsh):
    """Fish does as zsh."""

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


def _escaped(found: re.Match[str]) -> str:
    return f"\\{found[0]}" if found[0].isascii() else found[0]
