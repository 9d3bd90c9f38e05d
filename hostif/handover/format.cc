#include "hostif/handover/format.h"

#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"

namespace virtbay::handover {
namespace {

using vhost_user::ConnectionSnapshot;
using vhost_user::RingSnapshot;
using vhost_user::ServerSnapshot;
using vhost_user::SessionSnapshot;

// One description of each value serves both ways: Fields(archive, value) names its parts in order.
class Writer {
 public:
  static constexpr bool kReads = false;
  template <typename T>
  void Number(const T& value) {
    static_assert(std::is_arithmetic_v<T>);
    packed_.bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void Text(const std::string& value) {
    Number(static_cast<uint64_t>(value.size()));
    packed_.bytes += value;
  }
  void Raw(const std::vector<std::byte>& value) {
    Number(static_cast<uint64_t>(value.size()));
    packed_.bytes.append(reinterpret_cast<const char*>(value.data()), value.size());
  }
  template <typename T>
  void Fd(const T& fd) {
    Number(uint8_t{fd.valid()});
    if (fd.valid()) packed_.fds.push_back(fd.get());
  }
  template <typename List, typename F>
  void Each(const List& list, F each) {
    Number(static_cast<uint64_t>(list.size()));
    for (const auto& one : list) each(one);
  }
  template <typename T, typename F>
  void Maybe(const std::optional<T>& value, F f) {
    Number(uint8_t{value.has_value()});
    if (value.has_value()) f(*value);
  }
  Packed Take() { return std::move(packed_); }

 private:
  Packed packed_;
};

class Reader {
 public:
  static constexpr bool kReads = true;
  Reader(absl::string_view bytes, std::vector<UniqueFd> fds)
      : bytes_(bytes), fds_(std::move(fds)) {}

  template <typename T>
  void Number(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      uint8_t byte = 0;
      Number(byte);
      ok_ &= byte <= 1;
      value = byte == 1;
    } else {
      static_assert(std::is_arithmetic_v<T>);
      if (sizeof value > bytes_.size()) return Fail();
      std::memcpy(&value, bytes_.data(), sizeof value);
      bytes_.remove_prefix(sizeof value);
    }
  }
  void Text(std::string& value) { value = std::string(Piece()); }
  void Raw(std::vector<std::byte>& value) {
    const auto piece = std::as_bytes(std::span(Piece()));
    value.assign(piece.begin(), piece.end());
  }
  template <typename T>
  void Fd(T& fd) {
    bool there = false;
    Number(there);
    if (!there) return;
    if (next_fd_ == fds_.size()) return Fail();
    fd = std::move(fds_[next_fd_++]);
  }
  template <typename List, typename F>
  void Each(List& list, F each) {
    uint64_t count = 0;
    Number(count);
    // Each takes a byte at least.
    if (count > bytes_.size()) return Fail();
    for (uint64_t i = 0; ok_ && i < count; ++i) each(list.emplace_back());
  }
  template <typename T, typename F>
  void Maybe(std::optional<T>& value, F f) {
    bool there = false;
    Number(there);
    if (there && ok_) f(value.emplace());
  }
  // All of it, and nothing else, was read.
  absl::Status status() const {
    if (ok_ && bytes_.empty() && next_fd_ == fds_.size()) return absl::OkStatus();
    return absl::InvalidArgumentError("what the other process says of its devices makes no sense");
  }

 private:
  void Fail() {
    ok_ = false;
    bytes_ = {};
  }
  absl::string_view Piece() {
    uint64_t size = 0;
    Number(size);
    if (size > bytes_.size()) {
      Fail();
      return {};
    }
    const absl::string_view piece = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return piece;
  }

  absl::string_view bytes_;
  std::vector<UniqueFd> fds_;
  size_t next_fd_ = 0;
  bool ok_ = true;
};

template <typename A, typename... T>
void Numbers(A& a, T&... values) {
  (a.Number(values), ...);
}

// T is the value, const for a Writer.
template <typename A, typename T>
void ShapeFields(A& a, T& shape) {
  a.Text(shape.type);
  Numbers(a, shape.virtio_id, shape.queues, shape.config_size, shape.features, shape.has_state,
          shape.state_version);
}

template <typename A, typename T>
void LeftRingFields(A& a, T& ring) {
  Numbers(a, ring.size, ring.packed, ring.descriptors, ring.avail, ring.used, ring.base,
          ring.position);
  a.Each(ring.chains, [&](auto& chain) {
    Numbers(a, chain.head, chain.descriptors, chain.turn, chain.readable, chain.answered,
            chain.written, chain.read_only);
    a.Each(chain.parts, [&](auto& part) { Numbers(a, part.address, part.size); });
  });
}

template <typename A, typename T>
void LeftFields(A& a, T& left) {
  ShapeFields(a, left.shape);
  a.Text(left.state.type);
  a.Number(left.state.version);
  a.Text(left.state.bytes);
  a.Each(left.state.fds, [&](auto& fd) {
    a.Number(fd.role);
    a.Fd(fd.fd);
  });
  a.Each(left.rings, [&](auto& ring) { LeftRingFields(a, ring); });
  a.Text(left.config);
}

template <typename A, typename T>
void SessionFields(A& a, T& session) {
  Numbers(a, session.features, session.features_set, session.protocol_features_acknowledged,
          session.protocol_features, session.status, session.has_memory);
  a.Each(session.rings, [&](auto& ring) {
    Numbers(a, ring.size, ring.base, ring.base_given, ring.addressed, ring.enabled, ring.runs,
            ring.waiting, ring.started, ring.told, ring.descriptors, ring.avail, ring.used);
    a.Fd(ring.kick);
    a.Fd(ring.call);
    a.Fd(ring.error);
  });
  a.Each(session.regions, [&](auto& region) {
    Numbers(a, region.guest_address, region.size, region.user_address, region.mmap_offset);
  });
  a.Each(session.region_fds, [&](auto& fd) { a.Fd(fd); });
  a.Fd(session.backend);
  Numbers(a, session.in_flight.mmap_size, session.in_flight.mmap_offset,
          session.in_flight.num_queues, session.in_flight.queue_size);
  a.Fd(session.in_flight_fd);
}

template <typename A, typename T>
void ServerFields(A& a, T& server) {
  a.Fd(server.listener);
  a.Text(server.path);
  Numbers(a, server.device, server.inode);
  a.Maybe(server.connection, [&](auto& connection) {
    a.Fd(connection.socket);
    SessionFields(a, connection.session);
    a.Number(connection.config_changed);
    a.Raw(connection.read);
    a.Each(connection.read_fds, [&](auto& fd) { a.Fd(fd); });
    a.Raw(connection.unsent);
    a.Fd(connection.unsent_fd);
  });
}

template <typename A, typename T>
void OfferFields(A& a, T& offer) {
  a.Each(offer.devices, [&](auto& device) {
    a.Text(device.name);
    ShapeFields(a, device.shape);
    Numbers(a, device.aperture.base, device.aperture.size);
    a.Text(device.refusal);
  });
  Numbers(a, offer.pool_base, offer.pool_size);
}

template <typename A, typename T>
void DevicesFields(A& a, T& devices) {
  a.Each(devices, [&](auto& device) {
    a.Text(device.name);
    LeftFields(a, device.left);
    ServerFields(a, device.server);
    Numbers(a, device.stopped_at_ns, device.stop_ns);
  });
}

// Of a descriptor that is packed and stays who has it.
struct Borrowed {
  int fd;
  bool valid() const { return fd >= 0; }
  int get() const { return fd; }
};

}  // namespace

Packed PackOffer(const Offer& offer) {
  Writer writer;
  OfferFields(writer, offer);
  return writer.Take();
}

absl::StatusOr<Offer> UnpackOffer(absl::string_view bytes) {
  Reader reader(bytes, {});
  Offer offer;
  OfferFields(reader, offer);
  if (absl::Status status = reader.status(); !status.ok()) return status;
  return offer;
}

std::string PackNames(const std::vector<std::string>& names) {
  Writer writer;
  writer.Each(names, [&](const std::string& name) { writer.Text(name); });
  return writer.Take().bytes;
}

absl::StatusOr<std::vector<std::string>> UnpackNames(absl::string_view bytes) {
  Reader reader(bytes, {});
  std::vector<std::string> names;
  reader.Each(names, [&](std::string& name) { reader.Text(name); });
  if (absl::Status status = reader.status(); !status.ok()) return status;
  return names;
}

Packed PackDevices(const std::vector<HandedDevice>& devices, int lock, int withdrawn) {
  Writer writer;
  DevicesFields(writer, devices);
  writer.Fd(Borrowed{lock});
  writer.Fd(Borrowed{withdrawn});
  return writer.Take();
}

absl::StatusOr<Devices> UnpackDevices(absl::string_view bytes, std::vector<UniqueFd> fds) {
  Reader reader(bytes, std::move(fds));
  Devices devices;
  DevicesFields(reader, devices.devices);
  reader.Fd(devices.lock);
  reader.Fd(devices.withdrawn);
  if (absl::Status status = reader.status(); !status.ok()) return status;
  return devices;
}

}  // namespace virtbay::handover
