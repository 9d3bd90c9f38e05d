// The flows of a shard as bytes and descriptors, so that another shard of the same host goes on
// with them: what hands a device from one generation of the plugin to the next. Records with a tag
// and a length; what a reader does not know it passes over, what an older writer did not know is
// zero. Stateless functions; [queue] of the shard, or [control] while its pair is stopped.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_STATE_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_STATE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "plugins/proxy-net/flow/shard.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

struct SavedFlows {
  std::vector<uint8_t> bytes;
  // By the numbers that the bytes have for them; still the shard's: duplicate what is to live on.
  std::vector<int> fds;
};

// What Restore made.
struct RestoredFlows {
  uint32_t flows = 0;
  uint32_t dropped = 0;  // found no room, or were of another kind than can go on
};

// Connections with their sequence numbers and what they hold, UDP and echo flows, listeners, of all
// shards of a device.
// A stream to a service of the device's own is one end of a pair, whose other end the service
// saves.
SavedFlows SaveFlows(std::span<Shard* const> shards);
// Takes over what SaveFlows gave, and the descriptors, each counted anew, whatever becomes of them.
// An Error when the bytes are not well formed, or the descriptors are not those that they speak of:
// another number, another order, another kind; nothing was made then. What the flows have to say to
// the guest they say at the next Continue.
sdk::Result<RestoredFlows> RestoreFlows(Shard* shard, Bytes bytes, std::span<const int> fds);

// From one shard of a device to another, whose buckets become the other's (SharedFlows::PassTo):
// all flows of these buckets, none of which is pinned. Their sockets stay counted.
SavedFlows TakeOut(Shard* shard, std::span<const uint32_t> buckets);
// The buckets that have flows and are not pinned.
std::vector<uint32_t> BucketsOf(Shard* shard);
// Takes over what TakeOut gave, whatever becomes of it. Continue is due then as well.
RestoredFlows Adopt(Shard* shard, const SavedFlows& taken);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_STATE_H_
