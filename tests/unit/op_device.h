// What the tests of framework/device ask of their plugin (op_device.cc): each request begins with a
// Command that says what to do with it, each reply with a 64-bit result.
// Plain data, shared by the tests and the plugin.
#ifndef VIRTBAY_TESTS_UNIT_OP_DEVICE_H_
#define VIRTBAY_TESTS_UNIT_OP_DEVICE_H_

#include <cstdint>

namespace virtbay::testing {

// Shell tests write the numbers, so that new ones come last.
enum class Op : uint32_t {
  kEcho,         // the bytes behind the command come back behind the result
  kNothing,      // completed with nothing written
  kHold,         // kept until kRelease or the queue's end, which fails it
  kHoldStill,    // kept until kRelease, whatever happens
  kPark,         // kept; the queue's end requeues it
  kWait,         // as kPark, when the host lets it; else ends with result -1
  kRelease,      // ends what queue `a` holds with result 1; its own result is how many those were
  kFetch,        // result: sum of the readable bytes [a, a + b), or -1
  kReserve,      // a writable bytes, all with the value b; result -1 if there is no room
  kReserveHold,  // asks twice for a writable bytes if need be, and is kept as by kHold
  kOverrun,      // writes `offset` bytes from its view on, whatever lies there
  kReadNow,      // `b` bytes of the file at `offset` to the writable bytes at `a`
  kReadBlocking,
  kWriteNow,
  kWriteBlocking,
  kSubmitRead,
  kSubmitWrite,
  kSubmitFsync,
  kSubmitPoll,    // a: events
  kSubmitBad,     // an operation with sizes that lie; result: what submit said
  kCancel,        // cookie `offset`
  kTimer,         // ends after `offset` nanoseconds
  kOffload,       // ends when one byte has been read from the file on a pool thread
  kOffloadThrow,  // the work throws
  kFail,          // fails the device, then ends
  kCondemn,       // condemns the thread, then ends
  kConfigChanged,
  kSharesThread,  // result: 1 on the thread of queue `a`
  kCrash,         // the reload plugin: as `a` says (crash_here.h), in the place `b` (CrashPlace),
                  // and `offset` (CrashRepeat)
  kWhere,         // result: 1 on the queue's thread, +2 on the control thread
  kHoldView,      // as kHold; its out view is filled with the byte `a`
  kCheckViews,    // as kRelease; the result says how the views of kHoldView lie: at so many places
                  // of their slots, or what is wrong (ViewFault); behind their commands all have
                  // the byte `a`
};

enum ViewFault : int64_t {
  kMisaligned = -1,    // in: 64 bytes, out: 16
  kOutsideSlots = -2,  // beyond as many slots as they need
  kOverlapping = -3,
  kOverwritten = -4,
};

enum CrashPlace : uint32_t { kInRequests, kInTimer, kInOffload, kInIo };

// Of kCrash, in `offset`: it may be repeated.
enum CrashRepeat : uint64_t {
  kCrashAgain = 1,
  kCrashMended = 2,       // the second build answers it
  kCrashInMayRepeat = 3,  // the second build crashes when it is asked
};

struct Command {
  Op op = Op::kEcho;
  int32_t fd = -1;
  uint32_t a = 0;
  uint32_t b = 0;
  uint64_t offset = 0;
};
static_assert(sizeof(Command) == 24);

// The reply's head.
inline constexpr uint32_t kResultSize = 8;

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_UNIT_OP_DEVICE_H_
