#include "framework/device/failed_answer.h"

#include <linux/fuse.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "framework/memory/payload.h"

namespace virtbay {
namespace {

constexpr uint8_t kNetError = 1;  // VIRTIO_NET_ERR; its header is not valid C++

uint32_t Put(const Chain& chain, uint32_t offset, const void* bytes, size_t size) {
  return static_cast<uint32_t>(CopyToSegments(chain.writable(), offset, bytes, size));
}

uint32_t AnswerFuse(const Chain& chain) {
  fuse_in_header in{};
  fuse_out_header out{};
  if (chain.writable_bytes() < sizeof(out) ||
      CopyFromSegments(chain.readable(), 0, &in, sizeof(in)) != sizeof(in)) {
    return 0;
  }
  out.len = sizeof(out);
  out.error = -EIO;
  out.unique = in.unique;
  return Put(chain, 0, &out, sizeof(out));
}

// 9P2000.L: size[4] Rlerror tag[2] ecode[4], in answer to size[4] type[1] tag[2]; little endian.
uint32_t Answer9p(const Chain& chain) {
  constexpr uint8_t kRlerror = 7;
  std::array<uint8_t, 7> in{};
  std::array<uint8_t, 11> out{sizeof(out), 0, 0, 0, kRlerror, 0, 0, EIO, 0, 0, 0};
  if (chain.writable_bytes() < out.size() ||
      CopyFromSegments(chain.readable(), 0, in.data(), in.size()) != in.size()) {
    return 0;
  }
  out[5] = in[5];
  out[6] = in[6];
  return Put(chain, 0, out.data(), out.size());
}

// Of classes whose answer ends in a byte that tells how it went.
uint32_t AnswerLastByte(const Chain& chain, uint8_t status) {
  if (chain.writable_bytes() == 0) return 0;
  const uint32_t before = chain.writable_bytes() - 1;
  return Put(chain, before, &status, sizeof(status)) == 0 ? 0 : chain.writable_bytes();
}

}  // namespace

uint32_t WriteFailedAnswer(uint32_t virtio_id, const Chain& chain) {
  switch (virtio_id) {
    case VIRTIO_ID_FS:
      return AnswerFuse(chain);
    case VIRTIO_ID_9P:
      return Answer9p(chain);
    case VIRTIO_ID_BLOCK:
      return AnswerLastByte(chain, VIRTIO_BLK_S_IOERR);
    case VIRTIO_ID_NET:
      return AnswerLastByte(chain, kNetError);
    default:
      return 0;
  }
}

}  // namespace virtbay
