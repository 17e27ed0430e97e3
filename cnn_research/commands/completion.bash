_cnn_research() {
  local IFS=$' \t\n' line=${COMP_LINE:0:COMP_POINT} command='' done='' last='' word words candidate rest head
  COMPREPLY=()
  # Of the line itself: bash's own words also end at = and :, which stand in --config=NAME:MODE.
  word=${line##*[[:blank:]]}
  read -ra words <<<"$line"
  if [ "${#words[@]}" -gt 2 ] || { [ "${#words[@]}" -eq 2 ] && [ -z "$word" ]; }; then command=${words[1]}; fi
  # What bash has split off and won't replace.
  case $COMP_WORDBREAKS in *=*) done=${word%"${word##*[=:]}"} ;; esac
  for candidate in $(_cnn_research_words "$command"); do
    [[ $candidate == "$word"* ]] || continue
    # No further than the next = or dot: a section, then its fields, then their values.
    rest=${candidate#"$word"} head=${rest%%[=.]*}
    candidate=$word$head${rest:${#head}:1}
    [ "$candidate" = "$last" ] || [ "$candidate" = "$done" ] || COMPREPLY+=("${candidate#"$done"}")
    last=$candidate
  done
  case ${COMPREPLY[0]} in *[=.]) compopt -o nospace 2>/dev/null ;; esac
}
# Files, where nothing of this fits.
complete -o default -F _cnn_research cnn-research
