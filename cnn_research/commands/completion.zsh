_cnn_research() {
  local command= candidate rest head
  local -aU begun whole
  (( CURRENT > 2 )) && command=$words[2]
  for candidate in ${(f)"$(_cnn_research_words "$command")"}; do
    [[ $candidate == "$PREFIX"* ]] || continue
    # No further than the next = or dot: a section, then its fields, then their values.
    rest=${candidate#"$PREFIX"} head=${rest%%[=.]*}
    candidate=$PREFIX$head${rest[$#head+1]}
    case $candidate in
      *[=.]) [[ $candidate == "$PREFIX" ]] || begun+=($candidate) ;;
      *) whole+=($candidate) ;;
    esac
  done
  # Files, where nothing of this fits.
  (( $#begun + $#whole )) || { compset -P '*='; _files; return }
  compadd -S '' -a begun
  compadd -a whole
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _cnn_research cnn-research
