// Listeners: the sockets of a shard's port forwards, and what comes in by them. The control thread
// opens and binds a socket; the shard takes it over. They work while the guest is idle.
// Owned by a Shard; every function is [queue] unless said otherwise.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_LISTENER_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_LISTENER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "plugins/proxy-net/flow/core.h"
#include "plugins/proxy-net/flow/datagram.h"
#include "plugins/proxy-net/flow/slab.h"
#include "plugins/proxy-net/flow/tcp.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

// A port of the host that leads to one of the guest's.
struct ForwardSpec {
  uint8_t protocol = 0;  // TCP or UDP
  Endpoint host;         // port 0: one that is free
  uint16_t guest_port = 0;
  uint32_t forward = 0;  // the number of the forward that it belongs to

  // [any] A bound socket that is listening (TCP) or ready (UDP), and `host` with its real port.
  // `shared`: several shards have one each (SO_REUSEPORT). Not counted yet.
  static sdk::Result<int> OpenSocket(ForwardSpec* spec, bool shared);
};

struct Listener : Flow {
  uint16_t guest_port = 0;
  uint32_t forward = 0;
  uint8_t protocol = 0;
  bool readable = false;
};

class Listeners {
 public:
  Listeners(FlowCore* core, Tcp* tcp, Datagrams* datagrams);
  bool ok() const { return listeners_.ok(); }

  // Takes over a socket of OpenSocket, counted. False: no room; the socket is closed.
  bool Add(const ForwardSpec& spec, int fd);
  // Closes the sockets of a forward; the flows that came by them go on, but for UDP's, which have
  // no other socket. How many sockets there were.
  uint32_t Remove(uint32_t forward);
  void RemoveAll();

  void OnEvents(Listener* listener, uint32_t events);
  void OnTimer(Listener* listener);
  uint32_t Flush(Listener* listener, uint32_t frames);

  Listener* At(uint32_t id) const { return listeners_.At(id - core_->listener_ids.first); }
  // The sockets in use.
  const std::vector<uint32_t>& ids() const { return ids_; }

 private:
  uint32_t AcceptBatch(Listener* listener, uint32_t most);
  uint32_t PassDatagrams(Listener* listener, uint32_t frames);
  void Close(Listener* listener);

  FlowCore* const core_;
  Tcp* const tcp_;
  Datagrams* const datagrams_;
  Slab<Listener> listeners_;
  std::vector<uint32_t> ids_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_LISTENER_H_
