#include "plugins/proxy-net/inbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

namespace virtbay::proxy_net {

Inbox::Inbox(uint32_t senders) : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  for (uint32_t i = 0; i < senders; ++i) rings_.push_back(std::make_unique<Ring>());
}

Inbox::~Inbox() {
  if (fd_ >= 0) close(fd_);
}

bool Inbox::HasRoom(uint32_t sender) const {
  const Ring& ring = *rings_[sender];
  return ring.tail.load(std::memory_order_relaxed) - ring.head.load(std::memory_order_acquire) <
         kSlots;
}

bool Inbox::Post(std::unique_ptr<Message>* message) {
  Ring& ring = *rings_[(*message)->sender];
  if (!HasRoom((*message)->sender)) return false;
  const uint32_t tail = ring.tail.load(std::memory_order_relaxed);
  ring.slots[tail % kSlots] = std::move(*message);
  ring.tail.store(tail + 1, std::memory_order_seq_cst);
  // Either the receiver sees the message when it looks, or this sees that it has begun to look.
  if (!told_.exchange(true, std::memory_order_seq_cst)) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(fd_, &one, sizeof(one));
  }
  return true;
}

void Inbox::Quiet() {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = read(fd_, &count, sizeof(count));
  told_.store(false, std::memory_order_seq_cst);
}

std::unique_ptr<Message> Inbox::Take() {
  for (const std::unique_ptr<Ring>& ring : rings_) {
    const uint32_t head = ring->head.load(std::memory_order_relaxed);
    if (head == ring->tail.load(std::memory_order_seq_cst)) continue;
    std::unique_ptr<Message> message = std::move(ring->slots[head % kSlots]);
    ring->head.store(head + 1, std::memory_order_release);
    return message;
  }
  return nullptr;
}

}  // namespace virtbay::proxy_net
