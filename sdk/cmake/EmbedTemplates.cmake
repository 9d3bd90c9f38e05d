# Writes OUTPUT, a source with the files of DIRECTORY as texts: cmake -DDIRECTORY= -DOUTPUT= -P ...
cmake_minimum_required(VERSION 3.25)
file(GLOB_RECURSE files RELATIVE ${DIRECTORY} ${DIRECTORY}/*.in)
list(SORT files)
set(entries "")
foreach(file IN LISTS files)
  file(READ ${DIRECTORY}/${file} text)
  string(APPEND entries "      {\"${file}\", R\"~~~(${text})~~~\"},\n")
endforeach()
file(WRITE ${OUTPUT}.new "// Generated from sdk/new.
#include \"hostif/device_host/plugin_new.h\"

namespace virtbay::device_host {

std::vector<PluginTemplate> PluginTemplates() {
  return {
${entries}  };
}

}  // namespace virtbay::device_host
")
file(COPY_FILE ${OUTPUT}.new ${OUTPUT} ONLY_IF_DIFFERENT)
