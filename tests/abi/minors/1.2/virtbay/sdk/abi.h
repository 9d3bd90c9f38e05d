/* The binary contract as it was with ABI 1.2, comments taken out. Never changed. */
#ifndef VIRTBAY_SDK_ABI_H_
#define VIRTBAY_SDK_ABI_H_ 
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#define VIRTBAY_ABI_MAGIC 0x59424256u
#define VIRTBAY_ABI_MAJOR 1u
#define VIRTBAY_ABI_MINOR 2u
#define VIRTBAY_ENTRY_SYMBOL "virtbay_plugin_entry"
#define VIRTBAY_OK 0
#define VIRTBAY_CANCELLED 1
#define VIRTBAY_UNKNOWN 2
#define VIRTBAY_INVALID_ARGUMENT 3
#define VIRTBAY_DEADLINE_EXCEEDED 4
#define VIRTBAY_NOT_FOUND 5
#define VIRTBAY_ALREADY_EXISTS 6
#define VIRTBAY_PERMISSION_DENIED 7
#define VIRTBAY_RESOURCE_EXHAUSTED 8
#define VIRTBAY_FAILED_PRECONDITION 9
#define VIRTBAY_OUT_OF_RANGE 11
#define VIRTBAY_UNIMPLEMENTED 12
#define VIRTBAY_INTERNAL 13
#define VIRTBAY_UNAVAILABLE 14
#define VIRTBAY_LOG_TRACE 0u
#define VIRTBAY_LOG_DEBUG 1u
#define VIRTBAY_LOG_INFO 2u
#define VIRTBAY_LOG_WARN 3u
#define VIRTBAY_LOG_ERROR 4u
typedef struct virtbay_host virtbay_host;
typedef struct virtbay_host_device virtbay_host_device;
typedef struct virtbay_device virtbay_device;
typedef struct virtbay_request virtbay_request;
typedef struct virtbay_error {
  uint32_t struct_size;
  int32_t code;
  int32_t sys_errno;
  uint32_t reserved;
  char text[240];
} virtbay_error;
struct virtbay_request {
  uint32_t struct_size;
  uint16_t queue;
  uint16_t head;
  const uint8_t* in;
  uint8_t* out;
  uint32_t in_len;
  uint32_t in_total;
  uint32_t out_len;
  uint32_t out_total;
  uint64_t user;
};
typedef struct virtbay_completion {
  virtbay_request* request;
  uint32_t out_bytes;
  uint32_t written;
} virtbay_completion;
#define VIRTBAY_PARKED_OUT 64u
typedef struct virtbay_queue_service {
  uint32_t struct_size;
  uint32_t reserved;
  int32_t (*complete)(virtbay_request* request, uint32_t out_bytes, uint32_t written);
  int32_t (*fail)(virtbay_request* request);
  int32_t (*requeue)(virtbay_request* request);
  int32_t (*park)(virtbay_request* request);
  int32_t (*complete_group)(const virtbay_completion* completions, uint32_t count);
} virtbay_queue_service;
#define VIRTBAY_SERVICE_QUEUE "virtbay.host.queue/1"
#define VIRTBAY_MAPPING_MAX (256u * 1024u)
typedef struct virtbay_memory_service {
  uint32_t struct_size;
  uint32_t reserved;
  int32_t (*fetch)(virtbay_request* request, uint32_t offset, uint32_t len, const uint8_t** data);
  int32_t (*reserve)(virtbay_request* request, uint32_t len);
} virtbay_memory_service;
#define VIRTBAY_SERVICE_MEMORY "virtbay.host.memory/1"
#define VIRTBAY_IO_READ 1u
#define VIRTBAY_IO_WRITE 2u
#define VIRTBAY_IO_FSYNC 3u
#define VIRTBAY_IO_FALLOCATE 4u
#define VIRTBAY_IO_POLL 5u
#define VIRTBAY_IO_WORKER 1u
#define VIRTBAY_IO_STREAM UINT64_MAX
typedef struct virtbay_io {
  uint32_t struct_size;
  uint16_t op;
  uint16_t queue;
  int32_t fd;
  uint32_t rw_flags;
  virtbay_request* request;
  uint32_t payload_offset;
  uint32_t payload_len;
  uint64_t file_offset;
  uint64_t length;
  uint32_t arg;
  uint32_t reserved;
  uint64_t cookie;
} virtbay_io;
typedef struct virtbay_io_result {
  uint64_t cookie;
  virtbay_request* request;
  int32_t result;
  uint32_t op;
} virtbay_io_result;
typedef struct virtbay_io_service {
  uint32_t struct_size;
  uint32_t reserved;
  int32_t (*submit)(virtbay_host_device* host, const virtbay_io* ops, uint32_t n);
  int64_t (*read_now)(virtbay_request* request, int32_t fd, uint64_t file_offset,
                      uint32_t payload_offset, uint32_t payload_len, uint32_t rw_flags);
  int64_t (*write_now)(virtbay_request* request, int32_t fd, uint64_t file_offset,
                       uint32_t payload_offset, uint32_t payload_len, uint32_t rw_flags);
  int64_t (*read_blocking)(virtbay_request* request, int32_t fd, uint64_t file_offset,
                           uint32_t payload_offset, uint32_t payload_len, uint32_t rw_flags);
  int64_t (*write_blocking)(virtbay_request* request, int32_t fd, uint64_t file_offset,
                            uint32_t payload_offset, uint32_t payload_len, uint32_t rw_flags);
  int32_t (*cancel)(virtbay_host_device* host, uint32_t queue, uint64_t cookie);
} virtbay_io_service;
#define VIRTBAY_SERVICE_IO "virtbay.host.io/1"
#define VIRTBAY_MESSAGE_SLICES_MAX 512u
#define VIRTBAY_MESSAGE_PREFIX_MAX (32u * 1024u * 1024u)
#define VIRTBAY_MESSAGE_CONTROL_MAX 4096u
#define VIRTBAY_MESSAGE_FILE 1u
typedef struct virtbay_slice {
  virtbay_request* request;
  uint32_t offset;
  uint32_t len;
} virtbay_slice;
typedef struct virtbay_message {
  uint32_t struct_size;
  int32_t fd;
  uint32_t kind;
  uint32_t flags;
  const virtbay_slice* slices;
  uint32_t slice_count;
  uint32_t prefix_len;
  void* prefix;
  void* name;
  void* control;
  uint32_t name_len;
  uint32_t control_len;
  uint32_t result_flags;
  uint32_t reserved;
} virtbay_message;
typedef struct virtbay_message_service {
  uint32_t struct_size;
  uint32_t reserved;
  int64_t (*send)(virtbay_host_device* host, uint32_t queue, const virtbay_message* message);
  int64_t (*receive)(virtbay_host_device* host, uint32_t queue, virtbay_message* message);
} virtbay_message_service;
#define VIRTBAY_SERVICE_MESSAGE "virtbay.host.message/1"
typedef struct virtbay_log_service {
  uint32_t struct_size;
  uint32_t reserved;
  void (*write)(virtbay_host_device* host, uint32_t level, const char* text,
                uint32_t len);
  uint32_t (*level)(virtbay_host_device* host);
} virtbay_log_service;
#define VIRTBAY_SERVICE_LOG "virtbay.host.log/1"
typedef struct virtbay_timer_service {
  uint32_t struct_size;
  uint32_t reserved;
  uint64_t (*now_ns)(void);
  int32_t (*set)(virtbay_host_device* host, uint32_t queue, uint64_t delay_ns, uint64_t cookie);
  int32_t (*cancel)(virtbay_host_device* host, uint32_t queue, uint64_t cookie);
} virtbay_timer_service;
#define VIRTBAY_SERVICE_TIMER "virtbay.host.timer/1"
#define VIRTBAY_OPTION_MAX_MAPPING "host.max-mapping"
typedef struct virtbay_config_service {
  uint32_t struct_size;
  uint32_t reserved;
  int32_t (*get)(virtbay_host_device* host, const char* key, char* buffer, uint32_t capacity);
  const char* (*key)(virtbay_host_device* host, uint32_t index);
} virtbay_config_service;
#define VIRTBAY_SERVICE_CONFIG "virtbay.host.config/1"
typedef struct virtbay_metrics_service {
  uint32_t struct_size;
  uint32_t reserved;
  uint64_t* (*counter)(virtbay_host_device* host, const char* name, const char* help);
  uint64_t* (*gauge)(virtbay_host_device* host, const char* name, const char* help);
} virtbay_metrics_service;
#define VIRTBAY_SERVICE_METRICS "virtbay.host.metrics/1"
typedef struct virtbay_offload_service {
  uint32_t struct_size;
  uint32_t reserved;
  int32_t (*run)(virtbay_host_device* host, uint32_t queue, void (*work)(void* argument),
                 void* argument, uint64_t cookie);
} virtbay_offload_service;
#define VIRTBAY_SERVICE_OFFLOAD "virtbay.host.offload/1"
#define VIRTBAY_DESCRIPTOR_CACHED 1u
#define VIRTBAY_DESCRIPTOR_OWN 2u
typedef struct virtbay_descriptor_service {
  uint32_t struct_size;
  uint32_t reserved;
  uint32_t (*take)(virtbay_host_device* host, uint32_t flags);
  void (*give)(virtbay_host_device* host);
  void (*keep)(virtbay_host_device* host, int32_t change);
} virtbay_descriptor_service;
#define VIRTBAY_SERVICE_DESCRIPTORS "virtbay.host.descriptors/1"
typedef struct virtbay_device_service {
  uint32_t struct_size;
  uint32_t reserved;
  void (*fail)(virtbay_host_device* host, const char* text, uint32_t len);
  void (*condemn_thread)(virtbay_host_device* host, uint32_t queue, const char* text, uint32_t len);
  void (*config_changed)(virtbay_host_device* host);
} virtbay_device_service;
#define VIRTBAY_SERVICE_DEVICE "virtbay.host.device/1"
typedef struct virtbay_thread_check_service {
  uint32_t struct_size;
  uint32_t reserved;
  uint32_t (*is_queue_thread)(virtbay_host_device* host, uint32_t queue);
  uint32_t (*is_control_thread)(virtbay_host_device* host);
} virtbay_thread_check_service;
#define VIRTBAY_SERVICE_THREAD_CHECK "virtbay.host.thread-check/1"
struct virtbay_host {
  uint32_t struct_size;
  uint16_t abi_major;
  uint16_t abi_minor;
  const char* name;
  const char* version;
  const void* (*service)(const virtbay_host* host, const char* id);
};
#define VIRTBAY_DEVICE_QUEUE_PARALLEL 1u
typedef struct virtbay_device_type {
  uint32_t struct_size;
  uint32_t virtio_id;
  uint32_t flags;
  uint32_t reserved;
  char name[32];
} virtbay_device_type;
typedef struct virtbay_device_properties {
  uint32_t struct_size;
  uint32_t queue_count;
  uint64_t
      features[2];
  uint32_t config_size;
  uint32_t reserved;
} virtbay_device_properties;
#define VIRTBAY_QUEUE_AUXILIARY 1u
typedef struct virtbay_queue_properties {
  uint32_t struct_size;
  uint32_t max_size;
  uint32_t in_view;
  uint32_t out_view;
  uint32_t flags;
  uint32_t thread_group;
} virtbay_queue_properties;
typedef struct virtbay_device_ops {
  uint32_t struct_size;
  uint32_t reserved;
  int32_t (*init)(virtbay_device*, virtbay_error*);
  void (*properties)(virtbay_device*,
                     virtbay_device_properties*);
  void (*queue_properties)(virtbay_device*, uint32_t queue,
                           virtbay_queue_properties*);
  int32_t (*negotiate)(virtbay_device*, const uint64_t features[2], virtbay_error*);
  int32_t (*activate)(virtbay_device*,
                      virtbay_error*);
  int32_t (*start)(virtbay_device*, virtbay_error*);
  void (*on_requests)(virtbay_device*, uint32_t queue, virtbay_request* const* requests,
                      uint32_t n);
  void (*on_io)(virtbay_device*, uint32_t queue, const virtbay_io_result* results, uint32_t n);
  void (*on_timer)(virtbay_device*, uint32_t queue,
                   uint64_t cookie);
  void (*on_offload)(virtbay_device*, uint32_t queue, void* argument,
                     uint64_t cookie);
  void (*quiesce)(virtbay_device*, uint32_t queue);
  void (*resume)(virtbay_device*, uint32_t queue);
  void (*stop)(virtbay_device*);
  void (*deactivate)(virtbay_device*);
  int32_t (*config_read)(virtbay_device*, uint32_t offset, void* data, uint32_t len);
  int32_t (*config_write)(virtbay_device*, uint32_t offset, const void* data, uint32_t len);
  const void* (*extension)(virtbay_device*, const char* id);
  void (*destroy)(virtbay_device*);
} virtbay_device_ops;
struct virtbay_device {
  const virtbay_device_ops* ops;
};
#define VIRTBAY_CONTROL_ANSWER_MIN 4096u
typedef struct virtbay_device_control {
  uint32_t struct_size;
  uint32_t reserved;
  int32_t (*control)(virtbay_device* device, const char* command, const char* text,
                     uint32_t text_len, char* answer, uint32_t capacity, uint32_t* answer_len,
                     virtbay_error* error);
} virtbay_device_control;
#define VIRTBAY_EXTENSION_CONTROL "virtbay.device.control/1"
typedef struct virtbay_state_fd {
  uint32_t role;
  int32_t fd;
} virtbay_state_fd;
typedef struct virtbay_state {
  uint32_t struct_size;
  uint32_t version;
  const uint8_t* bytes;
  uint64_t size;
  const virtbay_state_fd* fds;
  uint32_t fd_count;
  uint32_t reserved;
} virtbay_state;
#define VIRTBAY_OPTION_RESTORES "host.restores"
typedef struct virtbay_device_state {
  uint32_t struct_size;
  uint32_t version;
  uint32_t oldest;
  uint32_t reserved;
  int32_t (*save)(virtbay_device* device, virtbay_state* state, virtbay_error* error);
  int32_t (*restore)(virtbay_device* device, const virtbay_state* state, virtbay_error* error);
  void (*release)(virtbay_device* device);
} virtbay_device_state;
#define VIRTBAY_EXTENSION_STATE "virtbay.device.state/1"
typedef struct virtbay_device_factory {
  uint32_t struct_size;
  uint32_t count;
  const virtbay_device_type* (*describe)(uint32_t index);
  int32_t (*create)(uint32_t index, const virtbay_host* host, virtbay_host_device* device_host,
                    virtbay_device** device, virtbay_error*);
} virtbay_device_factory;
#define VIRTBAY_FACTORY_DEVICE "virtbay.device-factory/1"
#define VIRTBAY_OPTION_TEXT 1u
#define VIRTBAY_OPTION_BOOLEAN 2u
#define VIRTBAY_OPTION_INTEGER 3u
#define VIRTBAY_OPTION_NUMBER 4u
typedef struct virtbay_option {
  uint32_t struct_size;
  uint32_t kind;
  const char* name;
} virtbay_option;
typedef struct virtbay_device_options {
  uint32_t struct_size;
  uint32_t reserved;
  const virtbay_option* (*describe)(uint32_t type, uint32_t index);
} virtbay_device_options;
#define VIRTBAY_FACTORY_OPTIONS "virtbay.device-options/1"
#define VIRTBAY_PLUGIN_HOT_RELOADABLE 1u
typedef struct virtbay_plugin {
  uint32_t struct_size;
  uint32_t magic;
  uint16_t abi_major;
  uint16_t abi_minor;
  uint32_t flags;
  char name[32];
  char version[32];
  char build[64];
  char device_types[128];
  int32_t (*load)(const virtbay_host*, virtbay_error*);
  void (*unload)(void);
  const void* (*factory)(const char* id);
} virtbay_plugin;
#ifdef __cplusplus
}
#endif
#endif
