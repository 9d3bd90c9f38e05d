# The way of a plugin author: install the SDK, copy the template, build it, look at the result. Then
# what must fail: a component that is not there, and a plugin that exports too much.
cmake_minimum_required(VERSION 3.25)
set(prefix ${WORK_DIR}/prefix)
file(REMOVE_RECURSE ${WORK_DIR})
file(MAKE_DIRECTORY ${WORK_DIR})
# The package must be found where it was installed, not in this build tree or on the machine.
unset(ENV{DESTDIR})
unset(ENV{virtbay_DIR})

include(${CMAKE_CURRENT_LIST_DIR}/functions.cmake)

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --component sdk --prefix ${prefix})
file(GLOB_RECURSE installed RELATIVE ${prefix} ${prefix}/*)
foreach(file IN LISTS installed)
  # Only what a plugin author needs, and nothing that names the build tree.
  if(NOT file MATCHES "^(include/virtbay/sdk/|lib[^ ]*/cmake/virtbay/|lib[^ ]*/libvirtbay_sdk_net.a$|lib[^ ]*/pkgconfig/virtbay-sdk.pc$|share/virtbay/(template|examples)/)")
    message(FATAL_ERROR "the sdk component installs ${file}")
  endif()
  # Debugging information names the sources.
  if(file MATCHES "[.]a$" AND NOT BUILD_TYPE STREQUAL "Release")
    continue()
  endif()
  file(STRINGS ${prefix}/${file} content)
  string(FIND "${content}" "${BUILD_DIR}" at)
  if(NOT at EQUAL -1)
    message(FATAL_ERROR "${file} names the build tree")
  endif()
endforeach()

set(configure ${CMAKE_COMMAND} -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${CXX_COMPILER}
  -DCMAKE_PREFIX_PATH=${prefix} -DCMAKE_BUILD_TYPE=Release)
file(COPY ${prefix}/share/virtbay/template DESTINATION ${WORK_DIR})
run(${configure} -DCMAKE_INSTALL_PREFIX=${WORK_DIR}/out -S ${WORK_DIR}/template
  -B ${WORK_DIR}/build)
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build)
run(${INSPECT} ${WORK_DIR}/build/plugins/virtio-rng.so)
expect("name=virtio-rng version=1.0.0 abi=1\\.[0-9]+ types=virtio-rng:4 exports=1 unique=0")
run(${CMAKE_COMMAND} --install ${WORK_DIR}/build)
file(GLOB_RECURSE plugins ${prefix}/*/virtbay/plugins/virtio-rng.so)
if(NOT plugins)
  message(FATAL_ERROR "the template installs nothing into virtbay_PLUGIN_DIR")
endif()

# A network device: the library beside the headers. One with a sanitizer needs that in the plugin.
if(SANITIZE)
  set(sanitized -DCMAKE_CXX_FLAGS=-fsanitize=${SANITIZE})
endif()
file(WRITE ${WORK_DIR}/net/CMakeLists.txt "cmake_minimum_required(VERSION 3.25)
project(net LANGUAGES CXX)
find_package(virtbay REQUIRED COMPONENTS sdk)
virtbay_add_plugin(sink SOURCES sink.cc LIBRARIES virtbay::sdk_net VERSION 1.2)
")
file(WRITE ${WORK_DIR}/net/sink.cc "#include <virtbay/sdk/net_device.h>
#include <virtbay/sdk/plugin.h>
class Sink : public virtbay::sdk::NetDevice {
  virtbay::sdk::Status Configure(virtbay::sdk::NetConfig*) override { return {}; }
  void OnFrames(uint32_t, std::span<virtbay::sdk::TxFrame>) override {}
};
VIRTBAY_PLUGIN(Sink, \"sink\", virtbay::sdk::kVirtioNetId, 0);
")
run(${configure} ${sanitized} -S ${WORK_DIR}/net -B ${WORK_DIR}/net/build)
run(${CMAKE_COMMAND} --build ${WORK_DIR}/net/build)
run(${INSPECT} ${WORK_DIR}/net/build/plugins/sink.so)
expect("name=sink version=1.2 abi=1\\.[0-9]+ types=sink:1 exports=1 unique=0")

# A component that is not installed.
file(WRITE ${WORK_DIR}/missing/CMakeLists.txt "cmake_minimum_required(VERSION 3.25)
project(missing LANGUAGES CXX)
find_package(virtbay REQUIRED COMPONENTS nonsense)
")
run_expecting("no component 'nonsense'"
  ${configure} -S ${WORK_DIR}/missing -B ${WORK_DIR}/missing/build)

# A library without an entry does not pass the post-link check, and a second build does not either.
file(WRITE ${WORK_DIR}/broken/CMakeLists.txt "cmake_minimum_required(VERSION 3.25)
project(broken LANGUAGES CXX)
find_package(virtbay REQUIRED COMPONENTS sdk)
virtbay_add_plugin(broken SOURCES broken.cc)
")
file(WRITE ${WORK_DIR}/broken/broken.cc "int nothing_here() { return 0; }\n")
run(${configure} -S ${WORK_DIR}/broken -B ${WORK_DIR}/broken/build)
foreach(attempt first second)
  run_expecting("exports no virtbay_plugin_entry" ${CMAKE_COMMAND} --build ${WORK_DIR}/broken/build)
endforeach()

# One that uses what has UNIQUE symbols in its headers is made unloadable by the flags.
file(WRITE ${WORK_DIR}/heavy/CMakeLists.txt "cmake_minimum_required(VERSION 3.25)
project(heavy LANGUAGES CXX)
find_package(virtbay REQUIRED)
virtbay_add_plugin(heavy SOURCES heavy.cc VERSION 7.8)
")
file(READ ${WORK_DIR}/template/rng.cc source)
file(WRITE ${WORK_DIR}/heavy/heavy.cc "#include <regex>\n${source}
template <typename T> struct Table { static inline T value = T(); };
bool Matches(const char* text) {
  ++Table<int>::value;
  return std::regex_match(text, std::regex(\"a*b\"));
}
bool (*volatile used)(const char*) = &Matches;
")
run(${configure} -S ${WORK_DIR}/heavy -B ${WORK_DIR}/heavy/build)
run(${CMAKE_COMMAND} --build ${WORK_DIR}/heavy/build)
run(${INSPECT} ${WORK_DIR}/heavy/build/plugins/heavy.so)
expect("version=7.8 .*exports=1 unique=0")
