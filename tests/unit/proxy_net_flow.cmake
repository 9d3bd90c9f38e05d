# The flows of the proxy-net plugin, over plain memory and real sockets.
virtbay_add_test(proxy_net_flow_test
  SOURCES proxy_net_tcp_test.cc proxy_net_datagram_test.cc proxy_net_forward_test.cc proxy_net_soak_test.cc proxy_net_state_test.cc
  LIBRARIES proxy_net_flow)
