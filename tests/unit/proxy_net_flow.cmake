# The flows of the proxy-net plugin, over plain memory and real sockets.
virtbay_add_test(proxy_net_flow_test
  SOURCES proxy_net_tcp_test.cc proxy_net_tcp_data_test.cc proxy_net_datagram_test.cc proxy_net_forward_test.cc proxy_net_eviction_test.cc proxy_net_hostile_test.cc proxy_net_shards_test.cc proxy_net_soak_test.cc proxy_net_state_test.cc
  LIBRARIES proxy_net_flow)

# The whole device, with a network namespace as its guest.
virtbay_add_test(proxy_net_guest_test
  SOURCES proxy_net_guest_test.cc proxy_net_guest_echo_test.cc proxy_net_guest_state_test.cc
          proxy_net_guest_pairs_test.cc proxy_net_end_test.cc proxy_net_hand_over_test.cc
          proxy_net_rules_state_test.cc
  LIBRARIES virtbay_guest proxy_net_packet)
target_compile_definitions(proxy_net_guest_test PRIVATE VIRTBAY_PROXY_NET="$<TARGET_FILE:proxy-net>")
add_dependencies(proxy_net_guest_test proxy-net)
virtbay_add_test(proxy_net_device_parts_test
  SOURCES proxy_net_device_parts_test.cc
  LIBRARIES proxy_net_core)
