// Bytes from the guest to the host's socket: straight from the frames of the burst; what the socket
// does not take stays in the spill.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "plugins/proxy-net/flow/sequence.h"
#include "plugins/proxy-net/flow/tcp.h"

namespace virtbay::proxy_net {
namespace {

constexpr size_t kMaxSlices = 64;
constexpr size_t kMaxVectors = 64;

}  // namespace

void Tcp::SendPieces(TcpFlow* flow) {
  uint32_t first = flow->first_piece;
  if (first == TcpFlow::kNoPiece) return;
  flow->first_piece = flow->last_piece = TcpFlow::kNoPiece;
  size_t most = kMaxSlices;
  while (first != TcpFlow::kNoPiece && flow->writable && !flow->shut &&
         pieces_[first].sequence == flow->to_host) {
    slices_.clear();
    uint32_t at = first;
    uint32_t end = flow->to_host;
    while (at != TcpFlow::kNoPiece && pieces_[at].sequence == end && slices_.size() < most) {
      const Piece& piece = pieces_[at];
      slices_.push_back({piece.frame, piece.offset, piece.length});
      end += piece.length;
      at = piece.next;
    }
    const int64_t sent = core_->link->Send(core_->pair, flow->fd, slices_, {});
    if (sent == -EAGAIN) {
      flow->writable = false;
      break;
    }
    if (sent == -EMSGSIZE) {
      // The frames lie in more pieces than one call takes: fewer of them, or through the spill.
      most = slices_.size() / 2;
      if (most > 0) continue;
      flow->drain = true;
      break;
    }
    if (sent < 0) return OnHostError(flow, static_cast<int>(-sent));
    flow->to_host += static_cast<uint32_t>(sent);
    flow->to_host_bytes += static_cast<uint64_t>(sent);
    if (flow->to_host != end) {
      flow->writable = false;
      break;
    }
    first = at;
  }
  for (; first != TcpFlow::kNoPiece; first = pieces_[first].next) {
    const Piece& piece = pieces_[first];
    if (!SeqAfter(piece.sequence + piece.length, flow->to_host)) continue;
    const uint32_t skip =
        SeqBefore(piece.sequence, flow->to_host) ? flow->to_host - piece.sequence : 0;
    if (!CopyToSpill(flow, piece, skip)) {
      // The guest is not told yet that these came: it will send them again.
      flow->received = piece.sequence + skip;
      flow->range_count = 0;
      if (flow->fin_received) {
        flow->fin_received = flow->fin_seen = false;
        flow->guest_first = false;
      }
      return;
    }
    core_->Count(Event::kTcpSpilled, piece.length - skip);
  }
}

// Copies the piece but for its first `skip` bytes. False: they could not be read.
bool Tcp::CopyToSpill(TcpFlow* flow, const Piece& piece, uint32_t skip) {
  uint32_t done = skip;
  while (done < piece.length) {
    const std::span<uint8_t> room =
        flow->spill.Room(core_->pool, piece.sequence + done, piece.length - done);
    if (!piece.frame->Copy(piece.offset + done, std::as_writable_bytes(room))) {
      core_->Count(Event::kTcpCopyFailed);
      return false;
    }
    done += static_cast<uint32_t>(room.size());
  }
  return true;
}

void Tcp::DrainSpill(TcpFlow* flow) {
  flow->drain = false;
  const uint32_t end = flow->data_end();
  while (SeqBefore(flow->to_host, end) && flow->writable && !flow->shut) {
    std::array<iovec, kMaxVectors> vectors;
    msghdr message = {};
    message.msg_iov = vectors.data();
    message.msg_iovlen =
        flow->spill.Gather(core_->pool, flow->to_host, end - flow->to_host, vectors);
    const ssize_t sent = sendmsg(flow->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent <= 0) {
      if (sent < 0 && errno == EINTR) continue;
      // Nothing of something: it would be so for ever.
      if (sent == 0 || errno != EAGAIN) return OnHostError(flow, sent == 0 ? EIO : errno);
      flow->writable = false;
      break;
    }
    flow->to_host += static_cast<uint32_t>(sent);
    flow->to_host_bytes += static_cast<uint64_t>(sent);
  }
}

// Gives back the chunks whose bytes the host has.
void Tcp::ReleaseSpill(TcpFlow* flow) {
  if (flow->spill.chunks() > 0) {
    const bool empty = flow->to_host == flow->data_end() && flow->range_count == 0;
    flow->spill.Release(core_->pool, flow->released, flow->to_host, empty);
  }
  flow->released = flow->to_host;
}

// The window is what memory is set aside for, less what lies in it. It grows while the guest fills
// it, up to a part of the memory that nobody has: so flows that are idle, whose own part is small,
// leave busy ones what they need, and busy ones leave new ones some. It stops moving while memory
// is short: its right edge never goes back (RFC 9293 3.8.6).
void Tcp::AdvanceWindow(TcpFlow* flow) {
  const bool flows = flow->to_host == flow->data_end();
  const uint32_t window = flow->receive_window;
  ChunkPool& pool = core_->pool;
  if (flow->received - flow->grown_at >= window / 2) {
    flow->grown_at = flow->received;
    const uint32_t larger = std::min((window + 32) * 4 - 32, kLargestWindow);
    const uint32_t chunks = std::max(Spill::ChunksFor(larger), flow->reserved);
    if (flows && window < kLargestWindow && uint64_t{chunks} * kGrowthShare <= pool.left()) {
      if (pool.Reserve(chunks - flow->reserved)) {
        flow->reserved = chunks;
        flow->receive_window = larger;
      }
    } else if (window > kFirstWindow && uint64_t{flow->reserved} * kGrowthShare / 2 > pool.left()) {
      flow->receive_window = std::max(kFirstWindow, (window + 32) / 2 - 32);
    }
  }
  const uint32_t target = flow->to_host + flow->receive_window;
  const uint32_t step = std::min<uint32_t>(flow->mss, flow->receive_window / 2);
  if (SeqAfter(target, flow->right_edge) && target - flow->right_edge >= step) {
    flow->right_edge = target;
  }
  const uint32_t span = flow->right_edge - flow->to_host;
  const uint32_t needed = Spill::ChunksFor(std::max(span, flow->receive_window));
  if (needed < flow->reserved) {
    pool.Unreserve(flow->reserved - needed);
    flow->reserved = needed;
  }
  if (flow->fin_received) return;
  // The guest must hear of a window that opens again: when it has little left of what it knows.
  const uint32_t known =
      SeqAfter(flow->told_edge, flow->received) ? flow->told_edge - flow->received : 0;
  if (flow->right_edge - flow->told_edge >= step &&
      (known < 2 * uint32_t{flow->mss} || known < flow->receive_window / 4)) {
    flow->ack_now = true;
  }
}

void Tcp::PassFin(TcpFlow* flow) {
  if (!flow->fin_received || flow->shut || flow->to_host != flow->fin_seq) return;
  flow->shut = true;
  flow->spill.Clear(core_->pool);
  if (shutdown(flow->fd, SHUT_WR) != 0) OnHostError(flow, errno);
}

void Tcp::OnHostError(TcpFlow* flow, int error) {
  int pending = 0;
  socklen_t size = sizeof(pending);
  getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &pending, &size);
  const bool reset = error == EPIPE || error == ECONNRESET || error == ENOTCONN ||
                     error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH;
  core_->Count(reset ? Event::kTcpResetByHost : Event::kHostError);
  Abort(flow);
}

}  // namespace virtbay::proxy_net
