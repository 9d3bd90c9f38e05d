// FuseNumbers: a FUSE server gives numbers to nodes, open files and places in a directory, and
// gives others when a record is replayed: a copy of a directory lists in another order. Learns from
// the answers which stands for which, and puts the new ones into the requests that follow. Owned by
// a replay; [control].
#ifndef VIRTBAY_HOSTIF_TESTKIT_FUSE_NUMBERS_H_
#define VIRTBAY_HOSTIF_TESTKIT_FUSE_NUMBERS_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

namespace virtbay::testkit {

class FuseNumbers {
 public:
  // Changes a request, as far as it was recorded, before it is sent.
  void Translate(uint32_t queue, uint64_t id, std::string* request);
  // The answer to it: as recorded, and as it is now.
  void Learn(uint32_t queue, uint64_t id, std::string_view recorded, std::string_view now);
  // The session is over.
  void Reset();

 private:
  struct Asked {
    uint32_t opcode = 0;
    uint64_t fh = 0;  // READDIR, READDIRPLUS: as recorded
  };
  // What one open directory was said to have.
  struct Listing {
    std::map<std::string, std::pair<uint64_t, uint64_t>, std::less<>> nodes;  // recorded, now
    std::map<uint64_t, uint64_t> places;  // where to go on: recorded, now
  };

  void LearnListing(Listing* listing, bool plus, std::string_view recorded, std::string_view now);

  std::map<uint64_t, uint64_t> nodes_, handles_;  // recorded, now
  std::map<uint64_t, Listing> listings_;          // by the recorded handle
  std::map<std::pair<uint32_t, uint64_t>, Asked> asked_;
};

}  // namespace virtbay::testkit

#endif  // VIRTBAY_HOSTIF_TESTKIT_FUSE_NUMBERS_H_
