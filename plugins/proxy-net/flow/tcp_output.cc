// Segments to the guest that carry no bytes, and what all segments have in common.
#include <algorithm>
#include <array>
#include <cerrno>

#include "plugins/proxy-net/flow/sequence.h"
#include "plugins/proxy-net/flow/tcp.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint8_t kHopLimit = 64;

}  // namespace

uint32_t Tcp::Timestamp(const TcpFlow& flow) const {
  return static_cast<uint32_t>(core_->now_ns / 1'000'000) + flow.ts_offset;
}

uint32_t Tcp::AdvertisedWindow(const TcpFlow& flow) const {
  if (!SeqAfter(flow.right_edge, flow.received)) return 0;
  const uint32_t window = flow.right_edge - flow.received;
  if (!flow.scaling) return std::min<uint32_t>(window, 65535);
  // Rounded down: what is taken is never less than what was told, and rounding up each time would
  // let the window creep on.
  return std::min<uint32_t>(window >> kReceiveScale, 65535);
}

TcpHeader Tcp::HeaderOf(TcpFlow* flow, uint8_t flags, uint32_t sequence) {
  TcpHeader header;
  header.source_port = flow->tuple.remote.port;
  header.destination_port = flow->tuple.guest.port;
  header.sequence = sequence;
  header.flags = flags;
  if ((flags & TcpHeader::kAck) != 0) header.acknowledgement = flow->received;
  header.window = static_cast<uint16_t>(AdvertisedWindow(*flow));
  if (flow->timestamps && (flags & TcpHeader::kRst) == 0) {
    header.options.timestamps = TcpOptions::Timestamps{Timestamp(*flow), flow->ts_recent};
  }
  return header;
}

void Tcp::AckSent(TcpFlow* flow) {
  flow->ack_now = flow->ack_later = false;
  flow->ack_at = UINT64_MAX;
  flow->last_ack_sent = flow->received;
  const uint32_t told = AdvertisedWindow(*flow) << (flow->scaling ? kReceiveScale : 0);
  flow->told_edge = SeqMax(flow->told_edge, flow->received + told);
}

bool Tcp::SendSegment(TcpFlow* flow, uint8_t flags, uint32_t sequence) {
  TcpHeader header = HeaderOf(flow, flags, sequence);
  if (flow->phase == TcpPhase::kConnecting) header.options.timestamps.reset();
  if (flow->sack && flow->range_count > 0 && (flags & TcpHeader::kRst) == 0) {
    const uint32_t most = flow->timestamps ? 3 : 4;
    const uint32_t count = std::min<uint32_t>(flow->range_count, most);
    for (uint32_t i = 0; i < count; ++i) {
      const auto& range = flow->ranges[(flow->last_range + i) % flow->range_count];
      header.options.sack[i] = {range.left, range.right};
    }
    header.options.sack_count = static_cast<uint8_t>(count);
  }
  std::array<uint8_t, kTcpSize + kTcpMaxOptions> bytes;
  Writer writer(bytes);
  WriteTcp(header, &writer);
  if (!core_->SendPacket(flow->tuple.remote.address, flow->tuple.guest.address, kProtocolTcp,
                         kHopLimit, writer.written())) {
    core_->Count(Event::kNoReceiveBuffers);
    return false;
  }
  if ((flags & TcpHeader::kAck) != 0) AckSent(flow);
  return true;
}

// Our SYN, with an ACK when the guest's came first.
void Tcp::SendSyn(TcpFlow* flow) {
  const bool answers = flow->phase == TcpPhase::kSynReceived;
  TcpHeader header =
      HeaderOf(flow, answers ? TcpHeader::kSyn | TcpHeader::kAck : TcpHeader::kSyn, flow->iss);
  // The window of a SYN is not scaled (RFC 7323 2.2).
  header.window = static_cast<uint16_t>(std::min<uint32_t>(flow->receive_window, 65535));
  const bool v4 = flow->tuple.guest.address.is_v4();
  const size_t headers = (v4 ? kIpv4Size : kIpv6Size) + kTcpSize;
  header.options.mss =
      static_cast<uint16_t>(core_->mtu() > headers + 64 ? core_->mtu() - headers : 64);
  if (flow->scaling) header.options.window_scale = kReceiveScale;
  header.options.sack_permitted = flow->sack;
  std::array<uint8_t, kTcpSize + kTcpMaxOptions> bytes;
  Writer writer(bytes);
  WriteTcp(header, &writer);
  flow->syn_due = !core_->SendPacket(flow->tuple.remote.address, flow->tuple.guest.address,
                                     kProtocolTcp, kHopLimit, writer.written());
  if (flow->syn_due) core_->WaitForRx(flow);
}

// RFC 9293 3.10.7.1: what no flow of ours means.
void Tcp::SendResetFor(const TcpSegment& segment) {
  const TcpHeader& from = segment.header;
  TcpHeader header;
  header.source_port = from.destination_port;
  header.destination_port = from.source_port;
  if (from.has(TcpHeader::kAck)) {
    header.sequence = from.acknowledgement;
    header.flags = TcpHeader::kRst;
  } else {
    header.acknowledgement = from.sequence + segment.payload_length +
                             (from.has(TcpHeader::kSyn) ? 1 : 0) +
                             (from.has(TcpHeader::kFin) ? 1 : 0);
    header.flags = TcpHeader::kRst | TcpHeader::kAck;
  }
  std::array<uint8_t, kTcpSize> bytes;
  Writer writer(bytes);
  WriteTcp(header, &writer);
  if (!core_->SendPacket(segment.tuple.remote.address, segment.tuple.guest.address, kProtocolTcp,
                         kHopLimit, writer.written())) {
    core_->Count(Event::kNoReceiveBuffers);
  }
}

// The guest's SYN found no way: what a router would say of it.
void Tcp::SendUnreachable(TcpFlow* flow, int error) {
  const Tuple& tuple = flow->tuple;
  const bool v4 = tuple.guest.address.is_v4();
  const bool forbidden = error == EACCES || error == EPERM;
  const bool network = error == ENETUNREACH || error == ENETDOWN;
  std::array<uint8_t, kIpv6Size + kTcpSize> bytes;
  Writer writer(bytes);
  IpHeader ip;
  ip.source = tuple.guest.address;
  ip.destination = tuple.remote.address;
  ip.protocol = kProtocolTcp;
  ip.payload_length = kTcpSize;
  WriteIp(ip, &writer);
  TcpHeader syn;
  syn.source_port = tuple.guest.port;
  syn.destination_port = tuple.remote.port;
  syn.sequence = flow->irs;
  syn.flags = TcpHeader::kSyn;
  WriteTcp(syn, &writer);
  if (v4) {
    const uint8_t code = forbidden ? 13 : network ? 0 : 1;
    core_->SendIcmpError(core_->host->GatewayAddress(false), IcmpHeader::kUnreachable, code, 0,
                         writer.written());
  } else {
    const uint8_t code = forbidden ? 1 : network ? 0 : 3;
    core_->SendIcmpError(core_->host->GatewayAddress(true), IcmpHeader::kV6Unreachable, code, 0,
                         writer.written());
  }
}

const char* TcpStateName(const TcpFlow& flow) {
  const bool fin_sent = flow.eof && flow.max == flow.eof_seq + 1;
  switch (flow.phase) {
    case TcpPhase::kClosed:
      return "CLOSED";
    case TcpPhase::kConnecting:
      return "CONNECTING";
    case TcpPhase::kSynReceived:
      return "SYN-RECEIVED";
    case TcpPhase::kSynSent:
      return "SYN-SENT";
    case TcpPhase::kTimeWait:
      return "TIME-WAIT";
    case TcpPhase::kOpen:
      break;
  }
  if (!fin_sent) return flow.fin_received ? "CLOSE-WAIT" : "ESTABLISHED";
  if (!flow.fin_received) return flow.fin_acked() ? "FIN-WAIT-2" : "FIN-WAIT-1";
  if (flow.fin_acked()) return "CLOSING";  // the host has not taken all bytes yet
  return flow.guest_first ? "LAST-ACK" : "CLOSING";
}

const char* TcpStallName(TcpStall stall) {
  switch (stall) {
    case TcpStall::kNone:
      return "";
    case TcpStall::kNoRxBuffers:
      return "no-rx-buffers";
    case TcpStall::kGuestWindow:
      return "guest-window";
    case TcpStall::kRecovery:
      return "recovery";
    case TcpStall::kHostSocket:
      return "host-socket";
  }
  return "";
}

std::string Tcp::Describe(const TcpFlow& flow) const {
  std::string text = "tcp " + flow.tuple.guest.ToString() + " > " + flow.tuple.remote.ToString();
  if (flow.host != flow.tuple.remote) text += " (" + flow.host.ToString() + ")";
  text += flow.inbound ? " in " : " out ";
  text += TcpStateName(flow);
  text += " guest-window=" + std::to_string(flow.window) +
          " in-flight=" + std::to_string(flow.in_flight()) + " window=" +
          std::to_string(SeqAfter(flow.right_edge, flow.received) ? flow.right_edge - flow.received
                                                                  : 0) +
          " spilled=" + std::to_string(flow.data_end() - flow.to_host) +
          " to-host=" + std::to_string(flow.to_host_bytes) +
          " to-guest=" + std::to_string(flow.to_guest_bytes) +
          " retransmits=" + std::to_string(flow.retransmits);
  const TcpStall stall = flow.to_host != flow.data_end() ? TcpStall::kHostSocket : flow.stall;
  if (stall != TcpStall::kNone) text += std::string(" stall=") + TcpStallName(stall);
  return text;
}

}  // namespace virtbay::proxy_net
