#include "hostif/vhost_user/in_flight_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/virtq/in_flight_log.h"

namespace virtbay::vhost_user {
namespace {

constexpr uint16_t kMaxRing = 32768;

absl::Status CheckShape(uint16_t queues, uint16_t queue_size) {
  if (queues != 0 && queue_size != 0 && queue_size <= kMaxRing) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("an in-flight log of ", queues, " rings of ", queue_size, " descriptors"));
}

}  // namespace

absl::StatusOr<InFlightMemory> InFlightMemory::Make(bool packed, uint16_t queues,
                                                    uint16_t queue_size) {
  VIRTBAY_RETURN_IF_ERROR(CheckShape(queues, queue_size));
  InFlightMemory memory;
  // At most 64 GiB of address space, of which nothing is there before it is written.
  memory.size = InFlightLogSize(packed, queue_size) * queues;
  memory.fd.reset(memfd_create("virtbay-in-flight", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.fd || ftruncate(memory.fd.get(), static_cast<off_t>(memory.size)) != 0 ||
      fcntl(memory.fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return ErrnoStatus(errno, "in-flight log");
  }
  return memory;
}

absl::StatusOr<InFlightArea> InFlightArea::Map(int fd, const InflightDescription& description) {
  VIRTBAY_RETURN_IF_ERROR(CheckShape(description.num_queues, description.queue_size));
  const uint64_t least =
      InFlightLogSize(/*packed=*/false, description.queue_size) * description.num_queues;
  if (description.mmap_size < least || description.mmap_offset % alignof(uint64_t) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "an in-flight log of ", description.num_queues, " rings of ", description.queue_size,
        " descriptors in ", description.mmap_size, " bytes at ", description.mmap_offset));
  }
  InFlightArea area;
  VIRTBAY_ASSIGN_OR_RETURN(
      area.all_.mapping, GuestMapping::Create(fd, description.mmap_offset, description.mmap_size));
  area.all_.size = description.mmap_size;
  area.queues_ = description.num_queues;
  area.queue_size_ = description.queue_size;
  return area;
}

absl::StatusOr<SharedArea> InFlightArea::Of(uint32_t ring, bool packed) const {
  if (ring >= queues_) return SharedArea();
  const uint64_t size = InFlightLogSize(packed, queue_size_);
  const uint64_t begin = size * ring;
  if (begin > all_.size || size > all_.size - begin) {
    return absl::InvalidArgumentError(absl::StrCat("the in-flight log ends before ring ", ring));
  }
  return SharedArea{all_.mapping, begin, size};
}

void InFlightArea::Forget(uint32_t rings, bool packed) const {
  for (uint32_t i = 0; i < rings && i < queues_; ++i) {
    const absl::StatusOr<SharedArea> area = Of(i, packed);
    if (area.ok()) ForgetInFlight(*area);
  }
}

}  // namespace virtbay::vhost_user
