# virtbay_add_plugin(): builds a plugin that a virtbay host can load and, above all, unload again.
#
#   virtbay_add_plugin(NAME
#     SOURCES a.cc b.cc ...
#     [LIBRARIES targets...]    linked privately
#     [VERSION text]            VIRTBAY_PLUGIN_VERSION; default: the project's version
#     [FILE_NAME name])         NAME.so unless given
#
# The target is the MODULE library NAME. It is written to VIRTBAY_PLUGIN_OUTPUT_DIR, by default
# <build>/plugins. After each link the library is checked: it exports virtbay_plugin_entry and nothing
# else, and no symbol of it is STB_GNU_UNIQUE, since either keeps the image mapped after dlclose.
# The same file serves in virtbay's own tree and in an installed package.

# The functions run in the caller's scope, where CMAKE_CURRENT_LIST_DIR is the caller's.
set(_VIRTBAY_PLUGIN_DIR ${CMAKE_CURRENT_LIST_DIR} CACHE INTERNAL "")

find_program(VIRTBAY_NM NAMES ${CMAKE_NM} nm llvm-nm REQUIRED)
mark_as_advanced(VIRTBAY_NM)

function(virtbay_add_plugin name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "VERSION;FILE_NAME" "SOURCES;LIBRARIES")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "virtbay_add_plugin(${name}): unknown argument ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT arg_SOURCES)
    message(FATAL_ERROR "virtbay_add_plugin(${name}): no SOURCES")
  endif()
  if(NOT arg_VERSION)
    set(arg_VERSION "${PROJECT_VERSION}")
  endif()
  if(NOT arg_VERSION)
    set(arg_VERSION 0.0.0)
  endif()
  if(NOT arg_FILE_NAME)
    set(arg_FILE_NAME ${name})
  endif()
  set(output_dir ${VIRTBAY_PLUGIN_OUTPUT_DIR})
  if(NOT output_dir)
    set(output_dir ${CMAKE_BINARY_DIR}/plugins)
  endif()

  add_library(${name} MODULE ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE virtbay::sdk ${arg_LIBRARIES})
  target_compile_definitions(${name} PRIVATE VIRTBAY_PLUGIN_VERSION="${arg_VERSION}")
  set_target_properties(${name} PROPERTIES
    PREFIX ""
    SUFFIX ".so"
    OUTPUT_NAME ${arg_FILE_NAME}
    NO_SONAME ON
    LIBRARY_OUTPUT_DIRECTORY ${output_dir}
    C_VISIBILITY_PRESET hidden
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    POSITION_INDEPENDENT_CODE ON
    LINK_DEPENDS "${_VIRTBAY_PLUGIN_DIR}/virtbay_plugin.version")
  # Hidden visibility alone is not enough: symbols of libstdc++'s headers are visible by attribute,
  # and GCC makes those of inline variables and template statics UNIQUE.
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fno-gnu-unique>)
  target_link_options(${name} PRIVATE
    "LINKER:--exclude-libs,ALL"
    "LINKER:--version-script=${_VIRTBAY_PLUGIN_DIR}/virtbay_plugin.version")
  # A sanitizer's runtime is in the executable: a plugin then has undefined symbols by design.
  set(sanitized "${CMAKE_CXX_FLAGS} ${CMAKE_EXE_LINKER_FLAGS} ${VIRTBAY_SANITIZE}")
  get_directory_property(directory_options LINK_OPTIONS)
  if(NOT VIRTBAY_SANITIZE AND NOT "${sanitized} ${directory_options}" MATCHES "-fsanitize=")
    target_link_options(${name} PRIVATE "LINKER:-z,defs")
  endif()

  add_custom_command(TARGET ${name} POST_BUILD
    COMMAND ${CMAKE_COMMAND} -DPLUGIN=$<TARGET_FILE:${name}> -DNM=${VIRTBAY_NM}
            -P ${_VIRTBAY_PLUGIN_DIR}/VirtbayCheckPlugin.cmake
    VERBATIM)
endfunction()
