# genimg_refuse(text...): stop with one sentence, which setup.py reads from refusal.txt and repeats.
file(REMOVE "${CMAKE_BINARY_DIR}/refusal.txt")

function(genimg_refuse)
  set(sentence "")
  math(EXPR last "${ARGC} - 1")
  foreach(i RANGE ${last})  # not over ARGV, which a semicolon in the text would split
    string(APPEND sentence "${ARGV${i}}")
  endforeach()
  file(WRITE "${CMAKE_BINARY_DIR}/refusal.txt" "${sentence}")
  message(FATAL_ERROR "${sentence}")
endfunction()
