// abi.h as C++20, with every warning an error.
#include <cstddef>
#include <type_traits>

#include "virtbay/sdk/abi.h"

// What crosses the boundary is plain data.
static_assert(std::is_trivial_v<virtbay_plugin> && std::is_standard_layout_v<virtbay_plugin>);
static_assert(std::is_trivial_v<virtbay_request> && std::is_standard_layout_v<virtbay_request>);
static_assert(std::is_trivial_v<virtbay_io> && std::is_standard_layout_v<virtbay_io>);
static_assert(std::is_trivial_v<virtbay_error> && std::is_standard_layout_v<virtbay_error>);

// The fixed beginning: two versions of the ABI can always tell each other.
static_assert(offsetof(virtbay_plugin, struct_size) == 0);
static_assert(offsetof(virtbay_plugin, magic) == 4);
static_assert(offsetof(virtbay_plugin, abi_major) == 8);
static_assert(offsetof(virtbay_plugin, abi_minor) == 10);

// Every table and struct that has a size begins with it.
template <typename T>
constexpr bool BeginsWithItsSize() {
  return offsetof(T, struct_size) == 0 && sizeof(T::struct_size) == sizeof(uint32_t);
}
static_assert(
    BeginsWithItsSize<virtbay_error>() && BeginsWithItsSize<virtbay_request>() &&
    BeginsWithItsSize<virtbay_queue_service>() && BeginsWithItsSize<virtbay_memory_service>() &&
    BeginsWithItsSize<virtbay_io>() && BeginsWithItsSize<virtbay_io_service>() &&
    BeginsWithItsSize<virtbay_log_service>() && BeginsWithItsSize<virtbay_timer_service>() &&
    BeginsWithItsSize<virtbay_config_service>() && BeginsWithItsSize<virtbay_metrics_service>() &&
    BeginsWithItsSize<virtbay_offload_service>() && BeginsWithItsSize<virtbay_device_service>() &&
    BeginsWithItsSize<virtbay_thread_check_service>() &&
    BeginsWithItsSize<virtbay_descriptor_service>() && BeginsWithItsSize<virtbay_message>() &&
    BeginsWithItsSize<virtbay_message_service>() && BeginsWithItsSize<virtbay_host>() &&
    BeginsWithItsSize<virtbay_device_type>() && BeginsWithItsSize<virtbay_device_properties>() &&
    BeginsWithItsSize<virtbay_queue_properties>() && BeginsWithItsSize<virtbay_device_ops>() &&
    BeginsWithItsSize<virtbay_device_factory>() && BeginsWithItsSize<virtbay_plugin>());
