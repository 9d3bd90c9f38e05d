/* The binary contract between a virtbay host and a plugin: the only thing that crosses the
 * boundary.
 *
 * C11, libc headers only. Every table and struct starts with `struct_size`, is append-only, and a
 * zero (or a member beyond struct_size) means "not given". No allocator, exception or C++ type
 * crosses. Text is UTF-8. Ownership is in the names: a `virtbay_request` belongs to the framework
 * and is lent to the plugin until exactly one of complete, fail or requeue ends it.
 *
 * Thread tags: [control] one host thread at a time per device, may block. [queue] the thread that
 * serves that queue, must not block; a device without VIRTBAY_DEVICE_QUEUE_PARALLEL has exactly one
 * such thread for all its queues. [any] every thread, concurrently.
 *
 * Error convention: functions that return int32_t return 0 or a positive VIRTBAY_* code, and put
 * the text into the caller's virtbay_error where one is passed.
 */
#ifndef VIRTBAY_SDK_ABI_H_
#define VIRTBAY_SDK_ABI_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VIRTBAY_ABI_MAGIC 0x59424256u /**< "VBBY", little endian */
#define VIRTBAY_ABI_MAJOR 1u          /**< a host loads only its own major */
#define VIRTBAY_ABI_MINOR 4u          /**< a host loads every minor: tables only grow */

/** Name of the one symbol that a plugin exports, a `const virtbay_plugin`. */
#define VIRTBAY_ENTRY_SYMBOL "virtbay_plugin_entry"

/** @name Error codes: the numeric values of absl::StatusCode */
/** @{ */
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
/** @} */

/** @name Log levels */
/** @{ */
#define VIRTBAY_LOG_TRACE 0u
#define VIRTBAY_LOG_DEBUG 1u
#define VIRTBAY_LOG_INFO 2u
#define VIRTBAY_LOG_WARN 3u
#define VIRTBAY_LOG_ERROR 4u
/** @} */

typedef struct virtbay_host virtbay_host;
typedef struct virtbay_host_device virtbay_host_device; /**< opaque: the host's side of a device */
typedef struct virtbay_device virtbay_device;           /**< the plugin's side of a device */
typedef struct virtbay_request virtbay_request;

/** Error text in the caller's memory; holds no pointers, so it survives an unload. */
typedef struct virtbay_error {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  int32_t code;         /**< VIRTBAY_* */
  int32_t sys_errno;    /**< errno behind it, or 0 */
  uint32_t reserved;    /**< zero */
  char text[240];       /**< NUL-terminated */
} virtbay_error;

/* ---- requests ------------------------------------------------------------------------------- */

/**
 * What a plugin sees of one descriptor chain. `in` and `out` are views in the device's arena; the
 * whole chain is addressed by offset through the memory and io services (late-bound payload):
 * readable offsets run over [0, in_total), writable ones over [0, out_total).
 */
struct virtbay_request {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint16_t queue;       /**< index of the virtqueue */
  uint16_t head;        /**< head descriptor: unique among the in-flight requests of the queue */
  const uint8_t* in; /**< copy of the first in_len readable bytes; never changes under the plugin */
  uint8_t* out;      /**< space for the first out_len writable bytes */
  uint32_t in_len;   /**< min(in_total, the queue's in_view) */
  uint32_t in_total; /**< device-readable bytes of the chain */
  uint32_t out_len;  /**< min(out_total, the queue's out_view), or what reserve() gave */
  uint32_t out_total; /**< device-writable bytes of the chain */
  uint64_t user;      /**< the plugin's own; 0 when the request is presented */
};

/** How one request of a group ends; see virtbay_queue_service::complete. */
typedef struct virtbay_completion {
  virtbay_request* request; /**< held by the plugin */
  uint32_t out_bytes;       /**< of the out view that go to the guest */
  uint32_t written;         /**< bytes reported to the guest */
} virtbay_completion;

/** Most bytes of the out view of a request that is parked. */
#define VIRTBAY_PARKED_OUT 64u

/** Service `virtbay.host.queue/1`: how a request ends, or goes on for long. */
typedef struct virtbay_queue_service {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /**
   * [queue] Ends the request: copies the first out_bytes of the out view to the guest and reports
   * `written` bytes (out_bytes <= written <= out_total; the bytes between were moved by io).
   * FAILED_PRECONDITION when the request has ended already, OUT_OF_RANGE when the sizes lie; a
   * request refused with OUT_OF_RANGE is completed with nothing written.
   */
  int32_t (*complete)(virtbay_request* request, uint32_t out_bytes, uint32_t written);
  /** [queue] Ends the request with nothing written. */
  int32_t (*fail)(virtbay_request* request);
  /** [queue] Hands the chain back unanswered: it is presented again, first, after the next start.
   */
  int32_t (*requeue)(virtbay_request* request);
  /**
   * [queue, may allocate] Since ABI 1.2. Asks to keep the request for a time that has no bound (a
   * lock that somebody else holds, an event that may never come); to be called before it is kept.
   * Granted while all that is parked leaves free at least half of the ring's descriptors and, where
   * the guest bounces its DMA, half of its pool, so that what ends the wait still gets through.
   * RESOURCE_EXHAUSTED: it is not granted; end the request, with an error. A parked request has no
   * arena slots: `in` is gone, with what fetch() and reserve() gave, and `out` has at most
   * VIRTBAY_PARKED_OUT bytes, whose contents are lost. It is ended as any other; a fetch() or
   * reserve() that needs slots ends the parking, so who keeps it on after that asks again. Payload
   * I/O may be under way meanwhile. Once more for a parked request: OK, and nothing happens.
   */
  int32_t (*park)(virtbay_request* request);
  /**
   * [queue] Since ABI 1.2: ends requests of one queue as `complete` does each, so that the driver
   * sees all of them or none: a network frame over several buffers (virtio 1.3 5.1.6.4). Each ends,
   * whatever is wrong with another; the first error is returned. INVALID_ARGUMENT, and nothing has
   * ended, when they are of several queues.
   */
  int32_t (*complete_group)(const virtbay_completion* completions, uint32_t count);
} virtbay_queue_service;
#define VIRTBAY_SERVICE_QUEUE "virtbay.host.queue/1"

/** Largest contiguous arena mapping: 128 slots of 2 KiB (IO_TLB_SEGSIZE x IO_TLB_SIZE). */
#define VIRTBAY_MAPPING_MAX (256u * 1024u)

/** Service `virtbay.host.memory/1`: payload bytes that the plugin itself must look at or make. */
typedef struct virtbay_memory_service {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /**
   * [queue] Copies readable bytes [offset, offset+len) into arena slots and returns them; valid
   * until the request ends. len <= VIRTBAY_MAPPING_MAX. OUT_OF_RANGE beyond in_total,
   * RESOURCE_EXHAUSTED when the arena has no slots (answer with an error or try later).
   */
  int32_t (*fetch)(virtbay_request* request, uint32_t offset, uint32_t len, const uint8_t** data);
  /**
   * [queue] Makes the out view at least len bytes, contiguous, and updates request->out and
   * request->out_len; what the view held before is not kept. Same limits and errors as fetch.
   */
  int32_t (*reserve)(virtbay_request* request, uint32_t len);
} virtbay_memory_service;
#define VIRTBAY_SERVICE_MEMORY "virtbay.host.memory/1"

/* ---- I/O ------------------------------------------------------------------------------------ */

/** @name virtbay_io operations */
/** @{ */
#define VIRTBAY_IO_READ 1u      /**< fd -> writable payload [payload_offset, +payload_len) */
#define VIRTBAY_IO_WRITE 2u     /**< readable payload [payload_offset, +payload_len) -> fd */
#define VIRTBAY_IO_FSYNC 3u     /**< arg = 1: data only */
#define VIRTBAY_IO_FALLOCATE 4u /**< arg = mode, file_offset, length */
#define VIRTBAY_IO_POLL 5u      /**< one-shot; arg = poll events, result = revents */
/** @} */

/**
 * `arg` of READ and WRITE: on a thread of the kernel's from the start. For files whose system waits
 * even when it is asked not to (FUSE, network file systems): it would wait on the queue's thread.
 */
#define VIRTBAY_IO_WORKER 1u

/** `file_offset` of a stream (socket, tty): no position. */
#define VIRTBAY_IO_STREAM UINT64_MAX

/** One operation for the io service; copied by submit. */
typedef struct virtbay_io {
  uint32_t struct_size;     /**< bytes of this struct that its maker knows */
  uint16_t op;              /**< VIRTBAY_IO_* */
  uint16_t queue;           /**< whose thread gets the result */
  int32_t fd;               /**< the plugin's; stays open until the result arrived */
  uint32_t rw_flags;        /**< RWF_* for READ and WRITE */
  virtbay_request* request; /**< whose payload; may be NULL for FSYNC, FALLOCATE, POLL */
  uint32_t payload_offset;  /**< of the request's readable (WRITE) or writable (READ) bytes */
  uint32_t payload_len;     /**< bytes to move; payload_offset + payload_len inside the total */
  uint64_t file_offset;     /**< or VIRTBAY_IO_STREAM */
  uint64_t length;          /**< FALLOCATE: bytes */
  uint32_t arg;             /**< see the operation; READ, WRITE: VIRTBAY_IO_WORKER or 0 */
  uint32_t reserved;        /**< zero */
  uint64_t cookie;          /**< returned with the result */
} virtbay_io;

/** A finished operation. */
typedef struct virtbay_io_result {
  uint64_t cookie;          /**< the operation's */
  virtbay_request* request; /**< the operation's */
  int32_t result;           /**< bytes or revents, or -errno */
  uint32_t op;              /**< VIRTBAY_IO_* */
} virtbay_io_result;

/**
 * Service `virtbay.host.io/1`: moves payload between file descriptors and the guest's pages; the
 * plugin never holds the pages. Short counts are possible as with preadv2(2).
 */
typedef struct virtbay_io_service {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /**
   * [queue] Queues n operations; they enter the kernel together at the end of the burst. Each gets
   * exactly one result through on_io on the queue's thread. Never fails for lack of room.
   * INVALID_ARGUMENT or OUT_OF_RANGE: none of them was queued.
   */
  int32_t (*submit)(virtbay_host_device* host, const virtbay_io* ops, uint32_t n);
  /** [queue] Reads now if that cannot block (RWF_NOWAIT). Bytes, or -errno; -EAGAIN: submit it. */
  int64_t (*read_now)(virtbay_request* request, int32_t fd, uint64_t file_offset,
                      uint32_t payload_offset, uint32_t payload_len, uint32_t rw_flags);
  /** [queue] Writes now if that cannot block (RWF_NOWAIT). Bytes, or -errno; -EAGAIN: submit it.
   * -EOPNOTSUPP where the file system has no such writes: write_blocking or submit it. */
  int64_t (*write_now)(virtbay_request* request, int32_t fd, uint64_t file_offset,
                       uint32_t payload_offset, uint32_t payload_len, uint32_t rw_flags);
  /** [queue] The same as read_now (write_blocking: as write_now) without RWF_NOWAIT: the plugin
   * takes it on itself that the call is short (page cache). */
  int64_t (*read_blocking)(virtbay_request* request, int32_t fd, uint64_t file_offset,
                           uint32_t payload_offset, uint32_t payload_len, uint32_t rw_flags);
  /** [queue] See read_blocking. */
  int64_t (*write_blocking)(virtbay_request* request, int32_t fd, uint64_t file_offset,
                            uint32_t payload_offset, uint32_t payload_len, uint32_t rw_flags);
  /** [queue] Asks for the end of every pending operation of this queue with that cookie; each still
   * gets its result (-ECANCELED, or what it had reached). */
  int32_t (*cancel)(virtbay_host_device* host, uint32_t queue, uint64_t cookie);
} virtbay_io_service;
#define VIRTBAY_SERVICE_IO "virtbay.host.io/1"

/** Slices of one message; a message may need no more than 1024 pieces of guest memory either. */
#define VIRTBAY_MESSAGE_SLICES_MAX 512u
/** Bytes of a message's prefix. */
#define VIRTBAY_MESSAGE_PREFIX_MAX (32u * 1024u * 1024u)
/** Bytes of a message's control buffer. */
#define VIRTBAY_MESSAGE_CONTROL_MAX 4096u
/** The descriptor of a message is no socket (a TAP interface, a pipe): readv and writev. */
#define VIRTBAY_MESSAGE_FILE 1u

/** Payload bytes [offset, offset + len) of a request. */
typedef struct virtbay_slice {
  virtbay_request* request; /**< held by the plugin, of a queue of the calling thread */
  uint32_t offset;          /**< in the readable bytes (send) or the writable ones (receive) */
  uint32_t len;             /**< may be 0 */
} virtbay_slice;

/**
 * One message: bytes of the plugin's own, then slices of one or several requests' payload. The
 * order of the slices is the order of their bytes.
 */
typedef struct virtbay_message {
  uint32_t struct_size;        /**< bytes of this struct that its maker knows */
  int32_t fd;                  /**< the plugin's */
  uint32_t kind;               /**< 0: a socket; or VIRTBAY_MESSAGE_FILE */
  uint32_t flags;              /**< of a socket: MSG_MORE, MSG_EOR, MSG_CONFIRM to send; MSG_PEEK,
                                    MSG_TRUNC, MSG_ERRQUEUE, MSG_CMSG_CLOEXEC to receive */
  const virtbay_slice* slices; /**< the payload, may be NULL when there is none */
  uint32_t slice_count;        /**< at most VIRTBAY_MESSAGE_SLICES_MAX */
  uint32_t prefix_len;         /**< at most VIRTBAY_MESSAGE_PREFIX_MAX */
  void* prefix;                /**< bytes before the payload; only receive writes to them */
  void* name;                  /**< of a socket: a struct sockaddr, or NULL */
  void* control;               /**< of a socket: ancillary data, or NULL; at most
                                    VIRTBAY_MESSAGE_CONTROL_MAX bytes */
  uint32_t name_len;           /**< bytes of `name`; receive sets it to what came */
  uint32_t control_len;        /**< bytes of `control`; receive sets it to what came */
  uint32_t result_flags;       /**< set by receive from a socket: MSG_TRUNC, MSG_CTRUNC ... */
  uint32_t reserved;           /**< zero */
} virtbay_message;

/**
 * Service `virtbay.host.message/1`, since ABI 1.2: payload to and from sockets and TAP interfaces,
 * at once: no call ever waits, -EAGAIN is a result. Nor does one raise SIGPIPE. Readiness is known
 * by VIRTBAY_IO_POLL.
 */
typedef struct virtbay_message_service {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /**
   * [queue] Sends prefix and slices; returns bytes or -errno: -EINVAL for a message that breaks its
   * rules or a thread that does not serve `queue` and the slices' queues, -ERANGE for a slice
   * beyond its request's readable bytes, -EMSGSIZE for one in too many pieces, -EFAULT when the
   * guest's memory has gone; else the kernel's. -EOPNOTSUPP: a file that could make the call wait.
   */
  int64_t (*send)(virtbay_host_device* host, uint32_t queue, const virtbay_message* message);
  /** [queue] The same into the prefix and the requests' writable bytes. */
  int64_t (*receive)(virtbay_host_device* host, uint32_t queue, virtbay_message* message);
} virtbay_message_service;
#define VIRTBAY_SERVICE_MESSAGE "virtbay.host.message/1"

/* ---- other host services -------------------------------------------------------------------- */

/** Service `virtbay.host.log/1`. The text is copied; the host adds time and device. */
typedef struct virtbay_log_service {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  void (*write)(virtbay_host_device* host, uint32_t level, const char* text,
                uint32_t len);                  /**< [any] */
  uint32_t (*level)(virtbay_host_device* host); /**< [any] the lowest level that is written */
} virtbay_log_service;
#define VIRTBAY_SERVICE_LOG "virtbay.host.log/1"

/** Service `virtbay.host.timer/1`: one-shot timers of a queue thread. */
typedef struct virtbay_timer_service {
  uint32_t struct_size;     /**< bytes of this struct that its maker knows */
  uint32_t reserved;        /**< zero */
  uint64_t (*now_ns)(void); /**< [any] CLOCK_MONOTONIC */
  /** [queue] Calls on_timer(queue, cookie) once, delay_ns from now; the same cookie again re-arms.
   */
  int32_t (*set)(virtbay_host_device* host, uint32_t queue, uint64_t delay_ns, uint64_t cookie);
  int32_t (*cancel)(virtbay_host_device* host, uint32_t queue, uint64_t cookie); /**< [queue] */
} virtbay_timer_service;
#define VIRTBAY_SERVICE_TIMER "virtbay.host.timer/1"

/**
 * Option that the host answers itself, in decimal bytes: the largest payload of a request that a
 * guest which bounces its DMA can map (256 KiB with Linux' SWIOTLB, less where its pool is small: a
 * larger one fails in the guest, or is never sent). Not set when the guest does not bounce. Names
 * that begin with "host." are the host's.
 */
#define VIRTBAY_OPTION_MAX_MAPPING "host.max-mapping"

/** Service `virtbay.host.config/1`: the device's options, text keys and values. */
typedef struct virtbay_config_service {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /** [any] Copies the value, NUL-terminated, into buffer (cut at capacity) and returns its whole
   * length, or -1 when the key is not set. */
  int32_t (*get)(virtbay_host_device* host, const char* key, char* buffer, uint32_t capacity);
  /** [any] The index-th key that is set, or NULL past the last; lives as long as the device. */
  const char* (*key)(virtbay_host_device* host, uint32_t index);
} virtbay_config_service;
#define VIRTBAY_SERVICE_CONFIG "virtbay.host.config/1"

/** Service `virtbay.host.metrics/1`. */
typedef struct virtbay_metrics_service {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /** [any, may allocate] A 64-bit cell that the host reports under this name (lower_snake) as a
   * number that only grows; the same name gives the same cell. Change it with relaxed atomics.
   * Lives as long as the device. NULL when the name is not of that form or the device has too many.
   */
  uint64_t* (*counter)(virtbay_host_device* host, const char* name, const char* help);
  /** [any, may allocate] The same for a number that goes up and down. */
  uint64_t* (*gauge)(virtbay_host_device* host, const char* name, const char* help);
} virtbay_metrics_service;
#define VIRTBAY_SERVICE_METRICS "virtbay.host.metrics/1"

/** Service `virtbay.host.offload/1`: work that blocks and that io cannot do. */
typedef struct virtbay_offload_service {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /** [queue] Runs work(argument) on a host thread, then on_offload(queue, argument, cookie) on the
   * queue's thread. Every accepted call gets its on_offload before the queue is quiesced. */
  int32_t (*run)(virtbay_host_device* host, uint32_t queue, void (*work)(void* argument),
                 void* argument, uint64_t cookie);
} virtbay_offload_service;
#define VIRTBAY_SERVICE_OFFLOAD "virtbay.host.offload/1"

/** It can be closed again at any time: refused before the last half of what devices share is gone.
 */
#define VIRTBAY_DESCRIPTOR_CACHED 1u
/** Only out of the part that is this device's own. */
#define VIRTBAY_DESCRIPTOR_OWN 2u

/**
 * Service `virtbay.host.descriptors/1`, since ABI 1.1: the file descriptors that a device holds for
 * its guest or keeps for later, counted against what the process may have. The devices of a host
 * share that; each has a part that the others cannot take.
 */
typedef struct virtbay_descriptor_service {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /** [any] Counts one that is about to be opened. 0: none is left, close another one first.
   * `flags`: VIRTBAY_DESCRIPTOR_*. */
  uint32_t (*take)(virtbay_host_device* host, uint32_t flags);
  /** [any] One that was counted is closed, or was not opened after all. */
  void (*give)(virtbay_host_device* host);
  /** [any] So many more (or fewer) of those that are counted are not open: the device keeps them
   * for what it could not do without. */
  void (*keep)(virtbay_host_device* host, int32_t change);
} virtbay_descriptor_service;
#define VIRTBAY_SERVICE_DESCRIPTORS "virtbay.host.descriptors/1"

/** Service `virtbay.host.device/1`: the device as a whole. */
typedef struct virtbay_device_service {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /** [any] The device cannot go on: DEVICE_NEEDS_RESET and a config interrupt (virtio 1.3 2.1.2).
   */
  void (*fail)(virtbay_host_device* host, const char* text, uint32_t len);
  /** [queue] This queue's thread must not serve again (e.g. it could not restore its credentials):
   * it takes no more requests, quiesces its queues, lets I/O and offloaded work that is under way
   * end, stops its rings and ends. The other threads go on; when no ring of theirs is left
   * (auxiliary ones apart), DEVICE_NEEDS_RESET. */
  void (*condemn_thread)(virtbay_host_device* host, uint32_t queue, const char* text, uint32_t len);
  /** [any] The configuration space changed: config interrupt (virtio 1.3 2.5). */
  void (*config_changed)(virtbay_host_device* host);
} virtbay_device_service;
#define VIRTBAY_SERVICE_DEVICE "virtbay.host.device/1"

/** Service `virtbay.host.thread-check/1`. */
typedef struct virtbay_thread_check_service {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  uint32_t (*is_queue_thread)(virtbay_host_device* host, uint32_t queue); /**< [any] 0 or 1 */
  uint32_t (*is_control_thread)(virtbay_host_device* host);               /**< [any] 0 or 1 */
} virtbay_thread_check_service;
#define VIRTBAY_SERVICE_THREAD_CHECK "virtbay.host.thread-check/1"

/** What a host offers; the same for every device of a loaded image. */
struct virtbay_host {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint16_t abi_major;   /**< VIRTBAY_ABI_MAJOR of the host */
  uint16_t abi_minor;   /**< VIRTBAY_ABI_MINOR of the host */
  const char* name;     /**< e.g. "virtbay" */
  const char* version;  /**< of the host, for the log only */
  /** [any] The service table with that id, or NULL; lives as long as the image is loaded. */
  const void* (*service)(const virtbay_host* host, const char* id);
};

/* ---- devices -------------------------------------------------------------------------------- */

/** @name virtbay_device_type flags */
/** @{ */
/** Every queue may have a thread of its own; see virtbay_queue_properties::thread_group. */
#define VIRTBAY_DEVICE_QUEUE_PARALLEL 1u
/** @} */

/** A device type of a plugin. */
typedef struct virtbay_device_type {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t virtio_id;   /**< virtio 1.3 5 */
  uint32_t flags;       /**< VIRTBAY_DEVICE_* */
  uint32_t reserved;    /**< zero */
  char name[32];        /**< what DeviceSpec::type names, e.g. "virtiofs" */
} virtbay_device_type;

/** What an initialised device asks for and offers. */
typedef struct virtbay_device_properties {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t queue_count; /**< at least 1 */
  uint64_t
      features[2]; /**< device-type bits (virtio 1.3 2.2); the host adds ring and transport bits,
                      but for VIRTIO_F_IN_ORDER (35), which a device offers itself whose requests
                      may wait for each other's end: the host then puts their answers in order */
  uint32_t config_size; /**< bytes of configuration space, at most 4096 */
  uint32_t reserved;    /**< zero */
} virtbay_device_properties;

/** @name virtbay_queue_properties flags */
/** @{ */
/** Of no use by itself: a device of which only such queues are left needs a reset. */
#define VIRTBAY_QUEUE_AUXILIARY 1u
/** @} */

/** What one queue asks for. */
typedef struct virtbay_queue_properties {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t max_size;    /**< largest ring, a power of two; 0 = the host's limit */
  uint32_t in_view;     /**< readable bytes copied into the arena before on_requests */
  uint32_t out_view;    /**< arena bytes for the head of the reply; in_view + out_view <= 256 KiB */
  uint32_t flags;       /**< VIRTBAY_QUEUE_* */
  /** Since ABI 1.2, for a device with VIRTBAY_DEVICE_QUEUE_PARALLEL: queues with the same number
   * are served by one thread, as the receive and transmit queue of a pair; 0: one of its own. */
  uint32_t thread_group;
} virtbay_queue_properties;

/** @name Why a device says farewell */
/** @{ */
#define VIRTBAY_FAREWELL_REMOVED 1u   /**< the device is removed, its host goes on */
#define VIRTBAY_FAREWELL_HOST_ENDS 2u /**< the host ends, in an orderly way */
/** @} */

/**
 * A device's functions. States: CREATED (create) -> READY (init) -> ACTIVE (activate) -> RUNNING
 * (start) -> QUIESCING (quiesce) -> QUIESCED (nothing in flight) -> RUNNING (resume) or ACTIVE
 * (stop) -> READY (deactivate). A function that fails leaves the device in the state it came from.
 * A member may be NULL unless marked required.
 */
typedef struct virtbay_device_ops {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  int32_t (*init)(virtbay_device*, virtbay_error*); /**< [control & CREATED] required */
  void (*properties)(virtbay_device*,
                     virtbay_device_properties*); /**< [control & READY] required */
  void (*queue_properties)(virtbay_device*, uint32_t queue,
                           virtbay_queue_properties*); /**< [control & READY] */
  /** [control & READY] What the driver acknowledged, host bits included. */
  int32_t (*negotiate)(virtbay_device*, const uint64_t features[2], virtbay_error*);
  int32_t (*activate)(virtbay_device*,
                      virtbay_error*);               /**< [control & READY] a front-end is there */
  int32_t (*start)(virtbay_device*, virtbay_error*); /**< [control & ACTIVE] requests may come */
  /** [queue & RUNNING] required. A batch of requests, in ring order. */
  void (*on_requests)(virtbay_device*, uint32_t queue, virtbay_request* const* requests,
                      uint32_t n);
  /** [queue & RUNNING|QUIESCING] A batch of results. */
  void (*on_io)(virtbay_device*, uint32_t queue, const virtbay_io_result* results, uint32_t n);
  void (*on_timer)(virtbay_device*, uint32_t queue,
                   uint64_t cookie); /**< [queue & RUNNING|QUIESCING] */
  void (*on_offload)(virtbay_device*, uint32_t queue, void* argument,
                     uint64_t cookie); /**< [queue & RUNNING|QUIESCING] */
  /** [queue & RUNNING] No more requests will come on this queue: end what is held, requeue what
   * would not end by itself. The host waits for the rest until its deadline. */
  void (*quiesce)(virtbay_device*, uint32_t queue);
  void (*resume)(virtbay_device*, uint32_t queue); /**< [queue & QUIESCED] requests come again */
  void (*stop)(virtbay_device*);                   /**< [control & QUIESCED] */
  void (*deactivate)(virtbay_device*);             /**< [control & ACTIVE] the front-end is gone */
  /** [control & not CREATED] virtio 1.3 2.5; offset + len <= config_size. */
  int32_t (*config_read)(virtbay_device*, uint32_t offset, void* data, uint32_t len);
  /** [control & not CREATED] The driver writes; the same range rule. */
  int32_t (*config_write)(virtbay_device*, uint32_t offset, const void* data, uint32_t len);
  const void* (*extension)(virtbay_device*, const char* id); /**< [any] NULL if absent */
  void (*destroy)(virtbay_device*); /**< [control & CREATED|READY] required; frees the device */
  /**
   * [queue & RUNNING] Since ABI 1.3. Last words: the device ends for good while this queue runs,
   * `reason` is one of VIRTBAY_FAREWELL_*. At most once for each queue, before its last quiesce; a
   * request may still come in between. Not called when a device pauses, is stopped or reset, when
   * its front-end goes, or when another one goes on in its place (a saved state, a hot reload). It
   * may not block: it counts against the deadline of a stop.
   */
  void (*farewell)(virtbay_device*, uint32_t queue, uint32_t reason);
} virtbay_device_ops;

/** The head of every plugin device; the plugin's own state follows it. */
struct virtbay_device {
  const virtbay_device_ops* ops; /**< set by create, constant */
};

/** An answer of at most so many bytes always finds room. */
#define VIRTBAY_CONTROL_ANSWER_MIN 4096u

/**
 * Extension `virtbay.device.control/1` of a device: commands that look at or change it while it
 * serves. Which commands there are, and what text they take and give, is the device type's.
 */
typedef struct virtbay_device_control {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /**
   * [control & not CREATED] Carries `command` (NUL-terminated) out with `text_len` bytes of `text`
   * (not NUL-terminated). The answer goes to `answer`, which has room for `capacity` bytes, at
   * least VIRTBAY_CONTROL_ANSWER_MIN; *answer_len is its whole length. OUT_OF_RANGE when that is
   * more than `capacity`: nothing was put there, and the host may ask again with more room; so a
   * command that changes something answers within VIRTBAY_CONTROL_ANSWER_MIN. UNIMPLEMENTED for a
   * command that the device does not know.
   */
  int32_t (*control)(virtbay_device* device, const char* command, const char* text,
                     uint32_t text_len, char* answer, uint32_t capacity, uint32_t* answer_len,
                     virtbay_error* error);
} virtbay_device_control;
#define VIRTBAY_EXTENSION_CONTROL "virtbay.device.control/1"

/** A file descriptor of a saved state. */
typedef struct virtbay_state_fd {
  uint32_t role; /**< the device type's own numbers */
  int32_t fd;    /**< the descriptor */
} virtbay_state_fd;

/** What a device was: bytes, and file descriptors by role. */
typedef struct virtbay_state {
  uint32_t struct_size;        /**< bytes of this struct that its maker knows */
  uint32_t version;            /**< of the bytes' form */
  const uint8_t* bytes;        /**< of the device type's own form */
  uint64_t size;               /**< of `bytes` */
  const virtbay_state_fd* fds; /**< what it has open */
  uint32_t fd_count;           /**< of `fds` */
  uint32_t reserved;           /**< zero */
} virtbay_state;

/**
 * Option that the host answers itself: "true" for a device that will be restored. What comes with
 * the state is not to be opened by init: another device may still have it. Since ABI 1.2.
 */
#define VIRTBAY_OPTION_RESTORES "host.restores"

/**
 * Option that the host answers itself: a directory of the device's own, in which it may keep what
 * another process goes on with after this one was killed. Not there: nothing is to be kept. Since
 * ABI 1.4.
 */
#define VIRTBAY_OPTION_STATE_DIR "host.state-dir"

/**
 * Extension `virtbay.device.state/1` of a device, since ABI 1.2: what another device of its type
 * needs to go on where it is, in the same process or another one of this machine. What the driver
 * has set is not part of it: the host has its rings, and the driver that comes sets the rest.
 */
typedef struct virtbay_device_state {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t version;     /**< that save writes, and the newest that restore takes */
  uint32_t oldest;      /**< that restore takes */
  uint32_t reserved;    /**< zero */
  /**
   * [control & QUIESCED|READY] Fills `state`. Nothing is consumed: the device can go on. Bytes and
   * descriptors stay the device's, until the next call of one of these functions or of destroy; the
   * host duplicates descriptors.
   */
  int32_t (*save)(virtbay_device* device, virtbay_state* state, virtbay_error* error);
  /**
   * [control & READY, once, before the first activate] Goes on with a state. The bytes are hostile
   * as far as they came from elsewhere. The descriptors are the device's from here on, also when it
   * fails. With an error the device is of no use, and is destroyed.
   */
  int32_t (*restore)(virtbay_device* device, const virtbay_state* state, virtbay_error* error);
  /**
   * [control & QUIESCED|READY, after save] Another one goes on with what was saved: the device lets
   * go of it without a word to anybody (no reset, no farewell). It is deactivated and destroyed.
   */
  void (*release)(virtbay_device* device);
} virtbay_device_state;
#define VIRTBAY_EXTENSION_STATE "virtbay.device.state/1"

/** Most bytes of a request that virtbay_device_repeat::may_repeat is shown. */
#define VIRTBAY_REPEAT_IN 256u

/**
 * Extension `virtbay.device.repeat/1` of a device, since ABI 1.4: which requests may be done again.
 * Asked of a device that takes the place of one that has crashed, for each request that the other
 * one had taken and not ended. Without the extension they are answered as failed.
 */
typedef struct virtbay_device_repeat {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /**
   * [any] 1: done again after it was done, done in part or not begun, it gives the driver what it
   * would have had. 0: it may not be. `in` has the first `in_len` bytes of `in_total` readable
   * ones, at most VIRTBAY_REPEAT_IN, as the driver has them now; `out_total` are writable. The
   * answer depends on these alone.
   */
  int32_t (*may_repeat)(virtbay_device* device, uint32_t queue, const uint8_t* in, uint32_t in_len,
                        uint32_t in_total, uint32_t out_total);
} virtbay_device_repeat;
#define VIRTBAY_EXTENSION_REPEAT "virtbay.device.repeat/1"

/** Factory `virtbay.device-factory/1`. */
typedef struct virtbay_device_factory {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t count;       /**< device types, at least 1 */
  const virtbay_device_type* (*describe)(uint32_t index); /**< [any] NULL past the last */
  /** [control] Makes a device in state CREATED; it may keep `host` but not call it before init. */
  int32_t (*create)(uint32_t index, const virtbay_host* host, virtbay_host_device* device_host,
                    virtbay_device** device, virtbay_error*);
} virtbay_device_factory;
#define VIRTBAY_FACTORY_DEVICE "virtbay.device-factory/1"

/* ---- options -------------------------------------------------------------------------------- */

/** @name virtbay_option kinds */
/** @{ */
#define VIRTBAY_OPTION_TEXT 1u
#define VIRTBAY_OPTION_BOOLEAN 2u /**< "true" or "false" */
#define VIRTBAY_OPTION_INTEGER 3u /**< decimal, may be negative */
#define VIRTBAY_OPTION_NUMBER 4u  /**< decimal, may have a fraction */
/** @} */

/** An option of a device type. */
typedef struct virtbay_option {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t kind;        /**< VIRTBAY_OPTION_* */
  const char* name;     /**< as in the config service */
} virtbay_option;

/**
 * Factory table `virtbay.device-options/1`; a plugin need not have it. With it a host refuses a
 * value of the wrong type where values have types (a file, say); the plugin gets text in any case
 * and remains the judge of it. An error of create or init that is about one option begins with
 * "option NAME: ", by which the host finds the place where it was given.
 */
typedef struct virtbay_device_options {
  uint32_t struct_size; /**< bytes of this struct that its maker knows */
  uint32_t reserved;    /**< zero */
  /** [any] The index-th option of that device type, or NULL past the last. */
  const virtbay_option* (*describe)(uint32_t type, uint32_t index);
} virtbay_device_options;
#define VIRTBAY_FACTORY_OPTIONS "virtbay.device-options/1"

/* ---- the entry ------------------------------------------------------------------------------ */

/** @name virtbay_plugin flags */
/** @{ */
/** A new image may take the place of this one under a running driver: its devices save their state
 * (VIRTBAY_EXTENSION_STATE), or have none that the driver would miss. */
#define VIRTBAY_PLUGIN_HOT_RELOADABLE 1u
/** @} */

/**
 * The exported symbol. Texts are arrays, not pointers, so that a file can be identified without
 * loading it.
 */
typedef struct virtbay_plugin {
  uint32_t struct_size;   /**< bytes of this struct that its maker knows */
  uint32_t magic;         /**< VIRTBAY_ABI_MAGIC */
  uint16_t abi_major;     /**< VIRTBAY_ABI_MAJOR that it was built with */
  uint16_t abi_minor;     /**< VIRTBAY_ABI_MINOR that it was built with */
  uint32_t flags;         /**< VIRTBAY_PLUGIN_* */
  char name[32];          /**< printable ASCII, not empty, NUL-terminated as the other texts */
  char version[32];       /**< the plugin's own */
  char build[64];         /**< compiler and commit, for the log only */
  char device_types[128]; /**< "name:virtio-id name:virtio-id ...", for people and inspectors */
  int32_t (*load)(const virtbay_host*, virtbay_error*); /**< [control] once per image; no threads */
  void (*unload)(void);                                 /**< [control] after the last destroy */
  const void* (*factory)(const char* id);               /**< [any] required; NULL if absent */
} virtbay_plugin;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VIRTBAY_SDK_ABI_H_ */
