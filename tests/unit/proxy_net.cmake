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
virtbay_add_test(proxy_net_dns_test
  SOURCES proxy_net_dns_test.cc
  LIBRARIES proxy_net_dns)

# The resolver against one that others wrote.
find_program(VIRTBAY_DNSMASQ dnsmasq PATHS /usr/sbin)
mark_as_advanced(VIRTBAY_DNSMASQ)
if(VIRTBAY_DNSMASQ)
  virtbay_add_test(proxy_net_dns_peer_test
    SOURCES proxy_net_dns_peer_test.cc
    LIBRARIES proxy_net_dns)
  target_compile_definitions(proxy_net_dns_peer_test PRIVATE VIRTBAY_DNSMASQ="${VIRTBAY_DNSMASQ}")
endif()

virtbay_add_test(proxy_net_options_test
  SOURCES proxy_net_options_test.cc
  LIBRARIES proxy_net_options)
