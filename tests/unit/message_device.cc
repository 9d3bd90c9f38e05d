// A plugin that makes the messages that its requests describe (message_device.h).
#include "tests/unit/message_device.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "tests/support/hand_over.h"
#include "virtbay/sdk/plugin.h"

namespace {

using virtbay::sdk::Device;
using virtbay::sdk::Properties;
using virtbay::sdk::QueueProperties;
using virtbay::sdk::Request;
using virtbay::sdk::Status;
using virtbay::testing::kMessageReplyRoom;
using virtbay::testing::MessageCommand;
using virtbay::testing::MessageOp;
using virtbay::testing::MessageReply;
using virtbay::testing::MessageSlice;

class MessageDevice : public Device {
 public:
  Status Init() override { return {}; }
  Properties GetProperties() const override {
    return {.queue_count = 2, .features = 0, .config_size = 0};
  }
  QueueProperties GetQueueProperties(uint32_t) const override {
    return {.max_size = 0, .in_view = 16384, .out_view = kMessageReplyRoom};
  }

  void OnRequests(uint32_t, std::span<Request> requests) override {
    // The tests name a request of another queue on purpose, so two threads may look here.
    const std::lock_guard<std::mutex> lock(mutex_);
    virtbay::testing::TakeOver();
    for (Request& request : requests) Do(std::move(request));
  }

  ~MessageDevice() override {
    for (Request& request : held_) request.Release();
  }

 private:
  void Do(Request request) {
    MessageCommand command;
    if (!request.Read(0, &command)) return request.Fail();
    if (command.op == MessageOp::kHold) {
      held_.push_back(std::move(request));
      return;
    }
    MessageReply reply;
    if (command.op == MessageOp::kRelease) {
      reply.result = static_cast<int64_t>(held_.size());
      for (Request& one : held_) one.Complete(0, one.out_total());
      held_.clear();
      request.Write(0, reply);
      return request.Complete(sizeof(reply));
    }
    if (command.op == MessageOp::kGroup || command.op == MessageOp::kGroupTwice) {
      std::vector<virtbay_completion> group;
      for (const Request& one : held_) {
        group.push_back({one.get(), 0, one.out_total()});
        if (command.op == MessageOp::kGroup) continue;
        group.push_back(group.back());
        // Sizes that lie, of all but the first.
        if (group.size() > 2) group[group.size() - 2].out_bytes = UINT32_MAX;
      }
      reply.result =
          host().queue_service().complete_group(group.data(), static_cast<uint32_t>(group.size()));
      if (reply.result != VIRTBAY_INVALID_ARGUMENT) {
        for (Request& one : held_) one.Release();
        held_.clear();
      }
      request.Write(0, reply);
      return request.Complete(sizeof(reply));
    }

    const bool receive = command.op == MessageOp::kReceive;
    const std::byte* next = request.in().data() + sizeof(command);
    std::vector<virtbay_slice> slices(command.slice_count);
    for (virtbay_slice& slice : slices) {
      MessageSlice one;
      std::memcpy(&one, next, sizeof(one));
      next += sizeof(one);
      slice.offset = one.offset;
      slice.len = one.len;
      if (one.held == MessageSlice::kSelf) slice.request = request.get();
      if (one.held < held_.size()) slice.request = held_[one.held].get();
    }
    std::vector<std::byte> extra(command.prefix_len <= 65536 ? command.prefix_len : 0);
    std::vector<std::byte> name(std::min(command.name_len, 256u));
    std::vector<std::byte> control(std::min(command.control_len, 4096u));
    if (!receive) {
      for (std::vector<std::byte>* part : {&extra, &name, &control}) {
        std::copy_n(next, part->size(), part->data());
        next += part->size();
      }
    }
    virtbay_message message = {};
    message.struct_size = command.struct_size != 0 ? command.struct_size : sizeof(message);
    message.fd = command.fd;
    message.kind = command.kind;
    message.flags = command.flags;
    message.slices = slices.data();
    message.slice_count =
        command.slices_claim != 0 ? command.slices_claim : static_cast<uint32_t>(slices.size());
    message.prefix_len = command.prefix_len;
    message.prefix = extra.data();
    message.name = name.data();
    message.name_len = command.name_len;
    message.control = control.data();
    message.control_len = command.control_len;
    if (command.no_pointers != 0) {
      message.slices = nullptr;
      message.prefix = message.name = message.control = nullptr;
    }
    reply.result =
        receive ? host().Receive(command.queue, &message) : host().Send(command.queue, message);
    reply.name_len = message.name_len;
    reply.control_len = message.control_len;
    reply.result_flags = message.result_flags;
    request.Write(0, reply);
    uint32_t at = sizeof(reply);
    if (receive && reply.result >= 0) {
      for (const std::vector<std::byte>* part : {&extra, &name, &control}) {
        const size_t n = std::min(part->size(), request.out().size() - at);
        std::copy_n(part->data(), n, request.out().data() + at);
        at += static_cast<uint32_t>(n);
      }
    }
    virtbay::testing::HandOver();  // the descriptor, back
    request.Complete(at, request.out_total());
  }

  std::mutex mutex_;
  std::vector<Request> held_;
};

}  // namespace

VIRTBAY_PLUGIN(MessageDevice, "message", 44, MESSAGE_DEVICE_FLAGS);
