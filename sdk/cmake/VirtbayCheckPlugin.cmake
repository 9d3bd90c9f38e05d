# Post-link check of a plugin: cmake -DPLUGIN=file -DNM=nm [-DKEEP=ON] -P VirtbayCheckPlugin.cmake
# Fails unless the file exports exactly virtbay_plugin_entry and has no UNIQUE symbol. A file that fails
# is removed, for the next build would take it for up to date; KEEP leaves it.
cmake_minimum_required(VERSION 3.25)

function(refuse problem)
  if(NOT KEEP)
    file(REMOVE ${PLUGIN})
  endif()
  # CMake folds the lines of an error; this one is for reading, and for grep.
  message(NOTICE "error: ${PLUGIN}: ${problem}")
  message(FATAL_ERROR "the plugin fails the post-link check")
endfunction()

execute_process(
  COMMAND ${NM} -D --defined-only ${PLUGIN}
  OUTPUT_VARIABLE dynamic ERROR_VARIABLE error RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  refuse("${NM} failed: ${error}")
endif()

set(exported)
set(unique)
string(REGEX MATCHALL "[^\n]+" lines "${dynamic}")
foreach(line IN LISTS lines)
  # "address type name", the name perhaps with "@@version".
  if(NOT line MATCHES "^[0-9a-fA-F]+ +([A-Za-z]) +(.+)$")
    continue()
  endif()
  list(APPEND exported "${CMAKE_MATCH_2}")
  if(CMAKE_MATCH_1 STREQUAL "u")
    list(APPEND unique "${CMAKE_MATCH_2}")
  endif()
endforeach()

set(problem)
if(NOT "virtbay_plugin_entry" IN_LIST exported)
  set(problem "exports no virtbay_plugin_entry (is VIRTBAY_PLUGIN(...) in one of its sources?)")
elseif(unique)
  list(JOIN unique ", " names)
  set(problem "has STB_GNU_UNIQUE symbols, which keep it mapped after dlclose: ${names}")
else()
  list(LENGTH exported count)
  if(count GREATER 1)
    list(REMOVE_ITEM exported virtbay_plugin_entry)
    list(JOIN exported ", " names)
    set(problem "exports more than virtbay_plugin_entry: ${names}")
  endif()
endif()
if(problem)
  refuse("${problem}")
endif()
