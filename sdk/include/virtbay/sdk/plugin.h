// VIRTBAY_PLUGIN: emits the one exported symbol of a plugin with one device type.
// Constant data only: no static constructors, so that the library can be unloaded.
#ifndef VIRTBAY_SDK_PLUGIN_H_
#define VIRTBAY_SDK_PLUGIN_H_

#include <cstring>
#include <string_view>

#include "virtbay/sdk/abi.h"
#include "virtbay/sdk/device.h"

#ifndef VIRTBAY_PLUGIN_VERSION
#define VIRTBAY_PLUGIN_VERSION "0.0.0"
#endif

namespace virtbay::sdk {

template <size_t N>
constexpr void CopyText(char (&to)[N], std::string_view from) {
  const size_t n = from.size() < N - 1 ? from.size() : N - 1;
  for (size_t i = 0; i < n; ++i) to[i] = from[i];
}

/// Decimal text of a virtio id behind "name:".
constexpr void CopyTypeText(char (&to)[128], std::string_view name, uint32_t virtio_id) {
  size_t at = 0;
  for (; at < name.size() && at < 100; ++at) to[at] = name[at];
  to[at++] = ':';
  char digits[10] = {};
  size_t count = 0;
  do {
    digits[count++] = static_cast<char>('0' + virtio_id % 10);
    virtio_id /= 10;
  } while (virtio_id != 0);
  while (count > 0) to[at++] = digits[--count];
}

constexpr virtbay_device_type MakeDeviceType(std::string_view name, uint32_t virtio_id,
                                             uint32_t flags) {
  virtbay_device_type type = {};
  type.struct_size = sizeof(type);
  type.virtio_id = virtio_id;
  type.flags = flags;
  CopyText(type.name, name);
  return type;
}

constexpr virtbay_plugin MakePlugin(std::string_view name, std::string_view version,
                                    std::string_view type, uint32_t virtio_id, uint32_t flags,
                                    const void* (*factory)(const char*)) {
  virtbay_plugin plugin = {};
  plugin.struct_size = sizeof(plugin);
  plugin.magic = VIRTBAY_ABI_MAGIC;
  plugin.abi_major = VIRTBAY_ABI_MAJOR;
  plugin.abi_minor = VIRTBAY_ABI_MINOR;
  plugin.flags = flags;
  CopyText(plugin.name, name);
  CopyText(plugin.version, version);
  CopyText(plugin.build, __VERSION__);
  CopyTypeText(plugin.device_types, type, virtio_id);
  plugin.factory = factory;
  return plugin;
}

constexpr virtbay_option MakeOption(const char* name, uint32_t kind) {
  return {sizeof(virtbay_option), kind, name};
}

/// A device class may declare its options: a static constexpr std::array of virtbay_option.
template <typename DeviceClass>
concept DeclaresOptions = requires {
  DeviceClass::kOptions.size();
};

/// A device class that saves its state can be reloaded, and one that says so: it has none that a
/// driver would miss (static constexpr bool kHotReloadable = true).
template <typename DeviceClass>
constexpr uint32_t PluginFlags() {
  bool reloadable = DeviceGlue<DeviceClass>::kSaves;
  if constexpr (requires { DeviceClass::kHotReloadable; }) reloadable = DeviceClass::kHotReloadable;
  return reloadable ? VIRTBAY_PLUGIN_HOT_RELOADABLE : 0;
}

/// The tables of a plugin with one device type, by id.
template <typename DeviceClass>
const void* FindTable(const char* id, const virtbay_device_factory* factory) {
  if (std::strcmp(id, VIRTBAY_FACTORY_DEVICE) == 0) return factory;
  if constexpr (DeclaresOptions<DeviceClass>) {
    static constexpr virtbay_device_options kTable = {
        sizeof(virtbay_device_options), 0,
        [](uint32_t type, uint32_t index) -> const virtbay_option* {
          const bool there = type == 0 && index < DeviceClass::kOptions.size();
          return there ? &DeviceClass::kOptions[index] : nullptr;
        }};
    if (std::strcmp(id, VIRTBAY_FACTORY_OPTIONS) == 0) return &kTable;
  }
  return nullptr;
}

}  // namespace virtbay::sdk

/// VIRTBAY_PLUGIN(class, "type name", virtio id, VIRTBAY_DEVICE_* flags)
#define VIRTBAY_PLUGIN(DeviceClass, type_name, virtio_id, device_flags)                            \
  namespace {                                                                                      \
  constexpr virtbay_device_type kVirtbayType =                                                     \
      virtbay::sdk::MakeDeviceType(type_name, virtio_id, device_flags);                            \
  constexpr virtbay_device_factory kVirtbayFactory = {                                             \
      sizeof(virtbay_device_factory), 1,                                                           \
      [](uint32_t index) -> const virtbay_device_type* {                                           \
        return index == 0 ? &kVirtbayType : nullptr;                                               \
      },                                                                                           \
      [](uint32_t index, const virtbay_host* host, virtbay_host_device* device_host,               \
         virtbay_device** device, virtbay_error* error) -> int32_t {                               \
        if (index != 0) return VIRTBAY_NOT_FOUND;                                                  \
        return virtbay::sdk::DeviceGlue<DeviceClass>::Create(host, device_host, device, error);    \
      }};                                                                                          \
  }                                                                                                \
  extern "C"                                                                                       \
      __attribute__((visibility("default"))) constinit const virtbay_plugin virtbay_plugin_entry = \
          virtbay::sdk::MakePlugin(                                                                \
              type_name, VIRTBAY_PLUGIN_VERSION, type_name, virtio_id,                             \
              virtbay::sdk::PluginFlags<DeviceClass>(), [](const char* id) -> const void* {        \
                return virtbay::sdk::FindTable<DeviceClass>(id, &kVirtbayFactory);                 \
              })

#endif  // VIRTBAY_SDK_PLUGIN_H_
