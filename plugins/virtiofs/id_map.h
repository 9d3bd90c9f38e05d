// IdMap: user or group numbers of the guest to those of the host and back, by ranges, in the terms
// of virtiofsd's --translate-uid and --translate-gid.
// A value, constant after Parse; functions are [any].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_ID_MAP_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_ID_MAP_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "virtbay/sdk/result.h"

namespace virtbay::virtiofs {

class IdMap {
 public:
  // A list, separated by commas, of
  //   guest:GUEST:HOST:COUNT         numbers of the guest to as many of the host
  //   host:HOST:GUEST:COUNT          numbers of the host to as many of the guest
  //   map:GUEST:HOST:COUNT           both
  //   squash-guest:GUEST:HOST:COUNT  all of them to one number of the host
  //   squash-host:HOST:GUEST:COUNT   all of them to one number of the guest
  //   forbid-guest:GUEST:COUNT       not to be used by the guest
  // A number that no range has stays what it is. An Error names the entry that is wrong or meets
  // an earlier one.
  static sdk::Result<IdMap> Parse(std::string_view text);

  bool empty() const { return to_host_.empty() && to_guest_.empty(); }
  // False: the guest may not use the number (EPERM).
  bool ToHost(uint32_t guest, uint32_t* host) const;
  uint32_t ToGuest(uint32_t host) const;

  bool operator==(const IdMap&) const = default;

 private:
  struct Range {
    uint32_t first = 0;
    uint32_t last = 0;
    uint32_t target = 0;  // of `first`
    bool squash = false;
    bool forbid = false;
    bool operator==(const Range&) const = default;
  };
  sdk::Status Add(std::string_view entry);
  static bool Insert(std::vector<Range>* ranges, const Range& range);
  static const Range* Find(const std::vector<Range>& ranges, uint32_t id);
  static uint32_t Target(const Range& range, uint32_t id) {
    return range.squash ? range.target : range.target + (id - range.first);
  }

  std::vector<Range> to_host_;   // ordered, disjoint
  std::vector<Range> to_guest_;  // ordered, disjoint
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_ID_MAP_H_
