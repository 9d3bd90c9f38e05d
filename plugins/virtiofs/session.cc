#include <algorithm>
#include <cerrno>

#include "plugins/virtiofs/ops.h"

namespace virtbay::virtiofs {
namespace {

constexpr uint16_t kMaxBackground = 1024;
constexpr uint16_t kCongestion = 768;
constexpr uint32_t kPage = 4096;

// Bits that no option takes away.
constexpr uint64_t kAlways = FUSE_ASYNC_READ | FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS |
                             FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA |
                             FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES |
                             FUSE_SETXATTR_EXT | FUSE_INIT_EXT | kInitCreateSuppGroup |
                             kInitNoExportSupport | kInitAllowIdmap;

// What this device can do under its options, as FUSE_INIT bits.
uint64_t Offered(const Options& o) {
  uint64_t flags = kAlways;
  if (o.announce_submounts) flags |= FUSE_SUBMOUNTS;
  // Entries that expire at once make READDIRPLUS a waste.
  if (o.readdirplus && o.cache != CachePolicy::kNever) {
    flags |= FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO;
  }
  if (o.writeback) flags |= FUSE_WRITEBACK_CACHE;
  if (o.killpriv_v2) flags |= FUSE_HANDLE_KILLPRIV_V2;
  if (o.posix_acl) flags |= FUSE_POSIX_ACL | FUSE_DONT_MASK;
  if (o.cache != CachePolicy::kNever) flags |= FUSE_CACHE_SYMLINKS;
  if (o.cache == CachePolicy::kNever || o.cache == CachePolicy::kMetadata) {
    flags |= kInitDirectIoAllowMmap;
  }
  return flags;
}

}  // namespace

uint64_t KnownInitFlags() {
  return kAlways | FUSE_SUBMOUNTS | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO |
         FUSE_WRITEBACK_CACHE | FUSE_HANDLE_KILLPRIV_V2 | FUSE_POSIX_ACL | FUSE_DONT_MASK |
         FUSE_CACHE_SYMLINKS | kInitDirectIoAllowMmap;
}

// FUSE_INIT: virtio 1.3 5.11.6.1 allows it again at any time; it begins a new session.
void OpInit(Call& c) {
  const auto in = c.Arg<fuse_init_in>();
  Fs& fs = c.fs;
  fuse_init_out out = {};
  out.major = kFuseMajor;
  out.minor = kFuseMaxMinor;
  if (in.major > kFuseMajor) {
    // The guest reads the version only, and sends INIT again with ours.
    c.Reply(out);
    return;
  }
  if (in.major < kFuseMajor || in.minor < kFuseMinMinor) {
    fs.host->Log(VIRTBAY_LOG_ERROR, "the guest speaks FUSE %u.%u, at least %u.%u is needed",
                 in.major, in.minor, kFuseMajor, kFuseMinMinor);
    c.Error(EPROTO);
    return;
  }
  fs.EndSession();

  uint64_t theirs = in.flags & ~static_cast<uint32_t>(FUSE_INIT_RESERVED);
  if ((theirs & FUSE_INIT_EXT) != 0) theirs |= static_cast<uint64_t>(in.flags2) << 32;
  uint64_t flags = theirs & Offered(fs.options);
  if ((flags & FUSE_POSIX_ACL) != 0 && (flags & FUSE_DONT_MASK) == 0) {
    // Default ACLs replace the umask, so without the unmasked mode they would be wrong.
    flags &= ~static_cast<uint64_t>(FUSE_POSIX_ACL);
  }
  if ((flags & FUSE_POSIX_ACL) == 0) flags &= ~static_cast<uint64_t>(FUSE_DONT_MASK);
  if ((flags & FUSE_DO_READDIRPLUS) == 0) flags &= ~static_cast<uint64_t>(FUSE_READDIRPLUS_AUTO);
  out.minor = std::min(in.minor, kFuseMaxMinor);
  out.max_readahead = in.max_readahead;
  out.flags = static_cast<uint32_t>(flags);
  out.flags2 = static_cast<uint32_t>(flags >> 32);
  out.max_background = kMaxBackground;
  out.congestion_threshold = kCongestion;
  out.max_write = fs.options.max_write;
  // Without MAX_PAGES the guest takes 32 pages at most, whatever max_write says.
  if ((flags & FUSE_MAX_PAGES) != 0) {
    out.max_pages = static_cast<uint16_t>(fs.options.max_write / kPage);
  }
  out.time_gran = 1;

  const bool direct_policy =
      fs.options.cache == CachePolicy::kNever || fs.options.cache == CachePolicy::kMetadata;
  if (direct_policy && (flags & kInitDirectIoAllowMmap) == 0) {
    fs.host->Log(VIRTBAY_LOG_INFO,
                 "the guest cannot map files that are open for direct I/O; file data goes through "
                 "its page cache, checked on every access, so that shared mappings work");
  }
  fs.session_flags.store(flags, std::memory_order_relaxed);
  fs.ready.store(true, std::memory_order_release);
  if (fs.keep != nullptr) fs.keep->SetSession(flags);
  fs.host->Log(VIRTBAY_LOG_INFO, "session: FUSE %u.%u, flags %#llx, max_write %u", kFuseMajor,
               out.minor, static_cast<unsigned long long>(flags), out.max_write);
  c.Reply(out);
}

void OpDestroy(Call& c) {
  c.fs.EndSession();
  c.Ok();
}

}  // namespace virtbay::virtiofs
