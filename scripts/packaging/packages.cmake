# `cpack -G DEB` in a build directory makes the Debian packages: virtbay (the executable and its
# plugins), libvirtbay (what an embedder's program needs), libvirtbay-dev (what building a plugin or
# such a program needs).
set(here ${CMAKE_CURRENT_LIST_DIR})
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_VENDOR virtbay)
set(CPACK_PACKAGE_CONTACT "The virtbay developers <virtbay@example.org>")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING ONE_PER_GROUP)
set(CPACK_COMPONENTS_ALL runtime runtime_doc library library_doc sdk host development_doc)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS_POLICY ">=")
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
# Not what the files of the one who builds have.
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS
  OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)

set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME virtbay)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION utils)
set(CPACK_DEBIAN_RUNTIME_DESCRIPTION
"virtio devices from plugins, each in a bay of its own
Serves virtio devices to virtual machines over vhost-user: directories of
the host (virtiofs), network interfaces, and devices of other plugins. Each
has its own memory for requests, rings and threads.")
set(CPACK_DEBIAN_LIBRARY_PACKAGE_NAME libvirtbay)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA ${here}/triggers)
set(CPACK_DEBIAN_LIBRARY_DESCRIPTION
"virtio devices from plugins: the shared library
What programs need that have virtbay's devices in themselves instead of in a
process beside them.")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libvirtbay-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SHLIBDEPS OFF)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS "libvirtbay (= ${PROJECT_VERSION}), libabsl-dev")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_RECOMMENDS "virtbay, cmake, libgtest-dev")
set(CPACK_DEBIAN_DEVELOPMENT_DESCRIPTION
"virtio devices from plugins: files for development
Headers, CMake functions and examples for plugins, and for programs that
have virtbay's devices in themselves; a test kit that runs a plugin without a
virtual machine.")

# What every Debian package has.
function(document component package)
  set(where ${CMAKE_INSTALL_DATADIR}/doc/${package})
  install(FILES ${here}/copyright DESTINATION ${where} COMPONENT ${component} EXCLUDE_FROM_ALL)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/packaging/changelog.gz DESTINATION ${where}
    COMPONENT ${component} EXCLUDE_FROM_ALL)
  if(EXISTS ${here}/${package}.overrides)
    install(FILES ${here}/${package}.overrides RENAME ${package}
      DESTINATION ${CMAKE_INSTALL_DATADIR}/lintian/overrides COMPONENT ${component} EXCLUDE_FROM_ALL)
  endif()
endfunction()
find_program(VIRTBAY_GZIP gzip)
mark_as_advanced(VIRTBAY_GZIP)
if(VIRTBAY_GZIP)
  file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/packaging)
  foreach(file changelog virtbay.1 virtbay-guest.1)
    configure_file(${here}/${file}.in ${CMAKE_CURRENT_BINARY_DIR}/packaging/${file} @ONLY)
    execute_process(COMMAND ${VIRTBAY_GZIP} -9nf ${CMAKE_CURRENT_BINARY_DIR}/packaging/${file})
  endforeach()
  document(runtime_doc virtbay)
  document(library_doc libvirtbay)
  document(development_doc libvirtbay-dev)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/packaging/virtbay.1.gz
    ${CMAKE_CURRENT_BINARY_DIR}/packaging/virtbay-guest.1.gz
    DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT runtime_doc EXCLUDE_FROM_ALL)
endif()

include(CPack)
cpack_add_component_group(runtime)
cpack_add_component_group(library)
cpack_add_component_group(development)
foreach(pair runtime:runtime runtime_doc:runtime library:library library_doc:library
             sdk:development host:development development_doc:development)
  string(REPLACE ":" ";" pair ${pair})
  list(GET pair 0 component)
  list(GET pair 1 group)
  cpack_add_component(${component} GROUP ${group})
endforeach()
