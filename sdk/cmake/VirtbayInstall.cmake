# What the install rules of several folders have in common.
include_guard(GLOBAL)
set(VIRTBAY_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/virtbay CACHE INTERNAL "")

# virtbay_install_pc(NAME COMPONENT DESCRIPTION text [REQUIRES names] [CFLAGS flags] [LIBS flags]):
# NAME.pc, which finds its prefix from where it lies, since that is chosen when it is installed.
function(virtbay_install_pc name component)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "DESCRIPTION;REQUIRES;CFLAGS;LIBS" "")
  cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
    BASE_DIRECTORY ${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/pkgconfig OUTPUT_VARIABLE up)
  string(REGEX REPLACE "/$" "" up "${up}")
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/${name}.pc
    "prefix=\${pcfiledir}/${up}\n"
    "includedir=\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}\n"
    "libdir=\${prefix}/${CMAKE_INSTALL_LIBDIR}\n"
    "plugindir=\${prefix}/${VIRTBAY_PLUGIN_INSTALL_DIR}\n"
    "\n"
    "Name: ${name}\n"
    "Description: ${arg_DESCRIPTION}\n"
    "Version: ${PROJECT_VERSION}\n"
    "Requires: ${arg_REQUIRES}\n"
    "Cflags: -I\${includedir} ${arg_CFLAGS}\n"
    "Libs: ${arg_LIBS}\n")
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${name}.pc
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT ${component})
endfunction()
