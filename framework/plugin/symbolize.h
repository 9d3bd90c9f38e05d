// Names for the addresses of a stack, from the symbol tables of the files that the code came from.
// Plugins export one symbol only, and the file that was loaded has no name any more, so that the
// dynamic linker's own tables do not do.
// Stateless; [any], but not in signal context.
#ifndef VIRTBAY_FRAMEWORK_PLUGIN_SYMBOLIZE_H_
#define VIRTBAY_FRAMEWORK_PLUGIN_SYMBOLIZE_H_

#include <span>
#include <string>
#include <vector>

namespace virtbay {

// An image whose file is known by a descriptor.
struct ImageFile {
  const void* inside = nullptr;  // an address in the image
  int fd = -1;                   // of its file
  std::string shown;             // the name of the file that the user knows
};

// One line for each address, the innermost first: "#0 Device::Read(int)+0x1c in /a/b.so+0x11f4".
// What has no name is shown as file and offset, for addr2line, or as the bare address. Those that
// called the plugin are left out.
std::vector<std::string> SymbolizeStack(std::span<void* const> frames, const ImageFile& plugin);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_PLUGIN_SYMBOLIZE_H_
