// Tcp: the TCP flows of a shard. Segments of the guest are looked at one by one and noted; what
// follows from them (one send, one discard, one ACK per flow) is done once at the end of the burst.
// Owned by a Shard; every function is [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_TCP_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_TCP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "plugins/proxy-net/flow/core.h"
#include "plugins/proxy-net/flow/slab.h"
#include "plugins/proxy-net/flow/tcp_flow.h"
#include "plugins/proxy-net/packet/parse.h"
#include "virtbay/sdk/net_link.h"

namespace virtbay::proxy_net {

// A segment of the guest's, in a frame of the burst.
struct TcpSegment {
  const sdk::TxFrame* frame = nullptr;
  Tuple tuple;
  uint32_t hash = 0;
  TcpHeader header;
  uint32_t payload_offset = 0;  // in the frame
  uint32_t payload_length = 0;
};

class Tcp {
 public:
  explicit Tcp(FlowCore* core);
  ~Tcp();
  bool ok() const { return flows_.ok(); }

  // A segment of the burst.
  void OnSegment(const TcpSegment& segment);
  // The socket of a flow is ready for `events`.
  void OnEvents(TcpFlow* flow, uint32_t events);
  // A timer of the flow's is due, or was once.
  void OnTimer(TcpFlow* flow);
  // Does what was put off. At most `frames` frames go to the guest; how many did.
  uint32_t Flush(TcpFlow* flow, uint32_t frames);

  // A connection that the host accepted: opens it to the guest. Takes fd, which is counted. False
  // when there is no room; fd is closed with a reset then.
  bool Accept(int fd, const Tuple& tuple, const Endpoint& peer, uint32_t listener);
  // Ends a flow with a reset both ways.
  void Abort(TcpFlow* flow);
  // Ends a flow with a reset to the host only: the guest knows, or is gone.
  void Drop(TcpFlow* flow);
  // Ends a flow without a word: its socket lives on elsewhere.
  void LetGo(TcpFlow* flow) { Remove(flow); }
  // Whether an open flow may be ended for a new one: no byte, nor the end of a stream, is under way
  // on either side.
  bool IsQuiet(const TcpFlow& flow) const;

  TcpFlow* At(uint32_t id) const { return flows_.At(id - core_->tcp_ids.first); }
  uint32_t Find(const Tuple& tuple) const { return core_->Find(tuple); }
  // A line for people: both ends, state, windows, stall.
  std::string Describe(const TcpFlow& flow) const;

  // The window that a flow begins with: three chunks, wherever in a chunk it begins.
  static constexpr uint32_t kFirstWindow = 2 * ChunkPool::kSize - 32;
  static constexpr uint32_t kLargestWindow = (1u << 20) - 32;
  // A window grows up to this part of what memory is left.
  static constexpr uint32_t kGrowthShare = 16;
  static constexpr uint8_t kReceiveScale = 5;

 private:
  friend class TcpState;
  // Bytes of a segment that are to go to the host, in order.
  struct Piece {
    const sdk::TxFrame* frame;
    uint32_t offset;
    uint32_t length;
    uint32_t sequence;
    uint32_t next;
  };

  // tcp_open.cc: how flows begin and end.
  TcpFlow* Create(const Tuple& tuple);
  // Where an open flow is looked for when one has to end.
  static AgeList ListOf(const TcpFlow& flow);
  void Open(const TcpSegment& segment);
  void Settle(TcpFlow* flow, const TcpHeader& syn);
  void OnConnected(TcpFlow* flow);
  void OnConnectFailed(TcpFlow* flow, int error);
  void Prepare(TcpFlow* flow);
  void Remove(TcpFlow* flow);
  void EnterTimeWait(TcpFlow* flow);
  void Finish(TcpFlow* flow);

  // tcp_input.cc: what a segment means.
  void OnOpenSegment(TcpFlow* flow, const TcpSegment& segment);
  void OnSynSent(TcpFlow* flow, const TcpSegment& segment);
  bool OnTimeWait(TcpFlow* flow, const TcpSegment& segment);
  bool OnAck(TcpFlow* flow, const TcpSegment& segment);
  void OnData(TcpFlow* flow, const TcpSegment& segment);
  // The guest's end has the number `fin`; OnFin is when all before it is here.
  void NoteFin(TcpFlow* flow, uint32_t fin);
  void OnFin(TcpFlow* flow);
  void KeepOutOfOrder(TcpFlow* flow, const TcpSegment& segment, uint32_t sequence, uint32_t offset,
                      uint32_t length);
  void MergeRanges(TcpFlow* flow);
  void Challenge(TcpFlow* flow);
  void Measure(TcpFlow* flow, uint32_t acknowledged);

  // tcp_uplink.cc: bytes from the guest to the host.
  void SendPieces(TcpFlow* flow);
  bool CopyToSpill(TcpFlow* flow, const Piece& piece, uint32_t skip);
  void DrainSpill(TcpFlow* flow);
  void ReleaseSpill(TcpFlow* flow);
  void AdvanceWindow(TcpFlow* flow);
  void PassFin(TcpFlow* flow);
  void OnHostError(TcpFlow* flow, int error);

  // tcp_downlink.cc: bytes from the host to the guest.
  void Discard(TcpFlow* flow);
  uint32_t Pump(TcpFlow* flow, uint32_t frames);
  // Peeks at up to `length` bytes from `sequence` on and sends them. Bytes sent, or -errno; 0 at
  // the end of what the other end sent. `asked`: what the guest's buffers had room for.
  int64_t SendData(TcpFlow* flow, uint32_t sequence, uint32_t length, uint32_t* asked);
  int64_t Peek(TcpFlow* flow, uint32_t sequence, uint32_t length, sdk::RxFrame* frame);
  void RetransmitHole(TcpFlow* flow, const TcpOptions& options);
  void SendFin(TcpFlow* flow);
  void OnRetransmitTimer(TcpFlow* flow);
  uint32_t LargestPayload(const TcpFlow& flow) const;

  // tcp_output.cc: segments to the guest.
  TcpHeader HeaderOf(TcpFlow* flow, uint8_t flags, uint32_t sequence);
  bool SendSegment(TcpFlow* flow, uint8_t flags, uint32_t sequence);
  void SendSyn(TcpFlow* flow);
  void SendResetFor(const TcpSegment& segment);
  void SendUnreachable(TcpFlow* flow, int error);
  uint32_t AdvertisedWindow(const TcpFlow& flow) const;
  uint32_t Timestamp(const TcpFlow& flow) const;
  void AckSent(TcpFlow* flow);

  uint64_t Rto(const TcpFlow& flow) const;
  void Rearm(TcpFlow* flow);

  FlowCore* const core_;
  Slab<TcpFlow> flows_;
  std::vector<Piece> pieces_;
  std::vector<sdk::TxSlice> slices_;
  std::vector<uint8_t> skip_;  // where a kernel without a peek offset puts what is passed over
  bool noted_peek_ = false;

 public:
  // The end of a burst: frames are gone.
  void ForgetPieces() { pieces_.clear(); }
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_TCP_H_
