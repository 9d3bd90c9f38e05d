// What joins the parts of proxy-net: its flow options, its mailbox, and the inbox of a queue pair.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <array>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "plugins/proxy-net/flow_options.h"
#include "plugins/proxy-net/inbox.h"
#include "plugins/proxy-net/mailbox.h"

namespace virtbay::proxy_net {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST(FlowOptionsTest, TakesItsOwnAndLeavesTheOthers) {
  FlowOptions options;
  bool known = false;
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"forward", "tcp:8080:80,udp:5353:53"},
                                                        {"max-tcp-flows", "100"},
                                                        {"max-udp-flows", "200"},
                                                        {"max-half-open", "10"},
                                                        {"max-new-flows", "1000"},
                                                        {"max-buffer-mib", "16"},
                                                        {"tcp-idle", "60"},
                                                        {"udp-idle", "30"}}) {
    EXPECT_TRUE(options.Parse(key, value, &known).ok()) << key;
    EXPECT_TRUE(known);
  }
  EXPECT_EQ(options.forwards.size(), 2u);
  EXPECT_EQ(options.limits.tcp_flows, 100u);
  EXPECT_EQ(options.limits.datagram_flows, 200u);
  EXPECT_EQ(options.limits.half_open, 10u);
  EXPECT_EQ(options.limits.new_flows_per_second, 1000u);
  EXPECT_EQ(options.limits.buffer_bytes, uint64_t{16} << 20);
  EXPECT_EQ(options.limits.tcp_idle_s, 60u);
  EXPECT_EQ(options.limits.udp_idle_s, 30u);
  EXPECT_TRUE(options.Parse("dns", "1.1.1.1", &known).ok());
  EXPECT_FALSE(known);
}

TEST(FlowOptionsTest, NamesWhatIsWrong) {
  FlowOptions options;
  bool known = false;
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"forward", "tcp:80"},
                                                        {"max-tcp-flows", "0"},
                                                        {"max-buffer-mib", "512"},
                                                        {"tcp-idle", "soon"},
                                                        {"udp-idle", ""}}) {
    const sdk::Status status = options.Parse(key, value, &known);
    ASSERT_FALSE(status.ok()) << key;
    EXPECT_THAT(status.error().text, StartsWith("option " + key + ": "));
  }
}

TEST(MailboxTest, WorkIsDoneByWhoServes) {
  Mailbox mailbox;
  std::thread::id by;
  // Nobody serves: at once, by who asks.
  EXPECT_TRUE(mailbox.Run([&] { by = std::this_thread::get_id(); }));
  EXPECT_EQ(by, std::this_thread::get_id());

  std::atomic<bool> stop{false};
  std::atomic<bool> serving{false};
  std::thread server([&] {
    mailbox.SetServing(true);
    serving = true;
    while (!stop) {
      pollfd one = {mailbox.fd(), POLLIN, 0};
      poll(&one, 1, 10);
      if (one.revents != 0) mailbox.OnReady();
    }
    mailbox.SetServing(false);
  });
  while (!serving) std::this_thread::yield();
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(mailbox.Run([&] { by = std::this_thread::get_id(); }));
    EXPECT_EQ(by, server.get_id());
  }
  stop = true;
  server.join();
}

TEST(MailboxTest, SomebodyElseStandsInOnlyWhileNobodyServes) {
  Mailbox mailbox;
  int done = 0;
  EXPECT_FALSE(mailbox.serving());
  EXPECT_TRUE(mailbox.RunIfIdle([&] { ++done; }));
  mailbox.SetServing(true);
  EXPECT_TRUE(mailbox.serving());
  EXPECT_FALSE(mailbox.RunIfIdle([&] { ++done; }));
  mailbox.SetServing(false);
  EXPECT_TRUE(mailbox.RunIfIdle([&] { ++done; }));
  EXPECT_EQ(done, 2);
}

TEST(InboxTest, MessagesOfOneSenderKeepTheirOrderAndFindARoomOfBoundedSize) {
  Inbox inbox(2);
  uint32_t posted = 0;
  for (;; ++posted) {
    auto message = std::make_unique<Message>();
    message->sender = 1;
    message->fd = static_cast<int>(posted);
    if (inbox.Post(&message)) continue;
    EXPECT_NE(message, nullptr);
    break;
  }
  EXPECT_EQ(posted, 256u);
  EXPECT_FALSE(inbox.HasRoom(1));
  EXPECT_TRUE(inbox.HasRoom(0));
  pollfd look = {inbox.fd(), POLLIN, 0};
  EXPECT_EQ(poll(&look, 1, 0), 1);
  EXPECT_TRUE(inbox.MayHave());
  inbox.Quiet();
  EXPECT_EQ(poll(&look, 1, 0), 0);
  for (uint32_t i = 0; i < posted; ++i) {
    const auto message = inbox.Take();
    ASSERT_NE(message, nullptr);
    EXPECT_EQ(message->fd, static_cast<int>(i));
  }
  EXPECT_EQ(inbox.Take(), nullptr);
  EXPECT_FALSE(inbox.MayHave());
}

// The receiver sleeps on the descriptor alone: a message that it was not woken for would stay.
TEST(InboxTest, NoMessageIsOverlooked) {
  constexpr int kEach = 20'000;
  constexpr uint32_t kSenders = 2;
  Inbox inbox(kSenders);
  std::vector<std::thread> senders;
  for (uint32_t sender = 0; sender < kSenders; ++sender) {
    senders.emplace_back([&inbox, sender] {
      for (int i = 0; i < kEach; ++i) {
        auto message = std::make_unique<Message>();
        message->sender = sender;
        message->fd = i;
        while (!inbox.Post(&message)) std::this_thread::yield();
      }
    });
  }
  std::array<int, kSenders> next{};
  while (next[0] < kEach || next[1] < kEach) {
    pollfd look = {inbox.fd(), POLLIN, 0};
    ASSERT_EQ(poll(&look, 1, 60'000), 1);
    inbox.Quiet();
    while (const auto message = inbox.Take()) EXPECT_EQ(message->fd, next[message->sender]++);
  }
  for (std::thread& sender : senders) sender.join();
}

TEST(MailboxTest, WhatWasGivenUpIsNeverDone) {
  Mailbox mailbox;
  mailbox.SetServing(true);
  bool done = false;
  EXPECT_FALSE(mailbox.Run([&] { done = true; }, std::chrono::milliseconds(1)));
  mailbox.OnReady();
  mailbox.SetServing(false);
  EXPECT_FALSE(done);
}

}  // namespace
}  // namespace virtbay::proxy_net
