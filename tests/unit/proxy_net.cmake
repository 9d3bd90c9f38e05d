# The parts of the proxy-net plugin that need no device.
virtbay_add_test(proxy_net_packet_test
  SOURCES proxy_net_packet_test.cc proxy_net_parse_test.cc
  LIBRARIES proxy_net_packet)
virtbay_add_test(proxy_net_policy_test
  SOURCES proxy_net_policy_test.cc
  LIBRARIES proxy_net_policy)
virtbay_add_test(proxy_net_lan_test
  SOURCES proxy_net_lan_test.cc proxy_net_dhcp_test.cc
  LIBRARIES proxy_net_lan)
