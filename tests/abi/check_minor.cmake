# A plugin of an earlier minor is one, and passes the conformance suite of today's host.
cmake_minimum_required(VERSION 3.25)
execute_process(COMMAND ${VIRTBAY} plugin inspect ${PLUGIN} --json
  OUTPUT_VARIABLE info COMMAND_ERROR_IS_FATAL ANY)
string(JSON major GET "${info}" abi_major)
string(JSON abi GET "${info}" abi_minor)
string(PREPEND abi "${major}.")
if(NOT abi STREQUAL MINOR)
  message(FATAL_ERROR "${PLUGIN} is of ABI ${abi}, not ${MINOR}")
endif()
execute_process(COMMAND ${VIRTBAY} plugin check ${PLUGIN} COMMAND_ERROR_IS_FATAL ANY)
