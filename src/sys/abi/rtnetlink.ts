// Routing and devices by netlink: include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,fib_rules,net_namespace,veth,if,
// if_arp,if_tunnel,if_bridge}.h.

export const RTM_NEWLINK = 16;
export const RTM_DELLINK = 17;
export const RTM_GETLINK = 18;
export const RTM_SETLINK = 19;
export const RTM_NEWADDR = 20;
export const RTM_DELADDR = 21;
export const RTM_GETADDR = 22;
export const RTM_NEWROUTE = 24;
export const RTM_DELROUTE = 25;
export const RTM_GETROUTE = 26;
export const RTM_NEWNEIGH = 28;
export const RTM_GETNEIGH = 30;
export const RTM_NEWRULE = 32;
export const RTM_DELRULE = 33;
export const RTM_GETRULE = 34;
export const RTM_NEWNSID = 88;
export const RTM_GETNSID = 90;

/** struct ifinfomsg, ifaddrmsg, rtmsg, ndmsg, fib_rule_hdr, rtgenmsg. */
export const IFINFOMSG_SIZE = 16;
export const IFADDRMSG_SIZE = 8;
export const RTMSG_SIZE = 12;
export const NDMSG_SIZE = 12;
export const RULE_HEADER_SIZE = 12;
export const RTGENMSG_SIZE = 1;

/** Groups of NETLINK_ROUTE: enum rtnetlink_groups. */
export const RTNLGRP_LINK = 1;
export const RTNLGRP_TC = 4;
export const RTNLGRP_IPV4_IFADDR = 5;
export const RTNLGRP_IPV4_ROUTE = 7;
export const RTNLGRP_IPV4_RULE = 8;
export const RTNLGRP_IPV6_IFADDR = 9;
export const RTNLGRP_IPV6_ROUTE = 11;
export const RTNLGRP_IPV6_RULE = 19;
export const RTNLGRP_NSID = 28;
export const RTNLGRP_NEXTHOP = 32;

export const IFLA_ADDRESS = 1;
export const IFLA_BROADCAST = 2;
export const IFLA_IFNAME = 3;
export const IFLA_MTU = 4;
export const IFLA_LINK = 5;
export const IFLA_MASTER = 10;
export const IFLA_TXQLEN = 13;
export const IFLA_STATS = 7;
export const IFLA_LINKINFO = 18;
export const IFLA_NET_NS_PID = 19;
export const IFLA_IFALIAS = 20;
export const IFLA_STATS64 = 23;
export const IFLA_AF_SPEC = 26;
export const IFLA_GROUP = 27;
export const IFLA_NET_NS_FD = 28;
export const IFLA_NUM_TX_QUEUES = 31;
export const IFLA_NUM_RX_QUEUES = 32;
export const IFLA_LINK_NETNSID = 37;
export const IFLA_NEW_IFINDEX = 49;
export const IFLA_PROP_LIST = 52;

export const IFLA_INFO_KIND = 1;
export const IFLA_INFO_DATA = 2;
export const IFLA_INFO_SLAVE_KIND = 4;
export const IFLA_INFO_SLAVE_DATA = 5;
export const VETH_INFO_PEER = 1;
export const IFLA_MACVLAN_MODE = 1;
export const IFLA_MACVLAN_FLAGS = 2;

export const IFLA_IPTUN_LINK = 1;
export const IFLA_IPTUN_LOCAL = 2;
export const IFLA_IPTUN_REMOTE = 3;
export const IFLA_IPTUN_TTL = 4;
export const IFLA_IPTUN_TOS = 5;
export const IFLA_IPTUN_FLAGS = 8;
export const IFLA_IPTUN_PROTO = 9;
export const IFLA_IPTUN_PMTUDISC = 10;
export const IFLA_IPTUN_6RD_PREFIX = 11;
export const IFLA_IPTUN_6RD_RELAY_PREFIX = 12;
export const IFLA_IPTUN_6RD_PREFIXLEN = 13;
export const IFLA_IPTUN_6RD_RELAY_PREFIXLEN = 14;
export const IFLA_IPTUN_ENCAP_TYPE = 15;
export const IFLA_IPTUN_ENCAP_FLAGS = 16;
export const IFLA_IPTUN_ENCAP_SPORT = 17;
export const IFLA_IPTUN_ENCAP_DPORT = 18;

export const IFF_UP = 0x1;
export const IFF_LOOPBACK = 0x8;

export const ARPHRD_LOOPBACK = 772;

export const NETNSA_NSID = 1;
export const NETNSA_PID = 2;
export const NETNSA_FD = 3;

export const IFA_FLAGS = 8;
export const IFA_F_PERMANENT = 0x80;

export const RTA_GATEWAY = 5;
export const RTA_PREFSRC = 7;
export const RTA_TABLE = 15;
export const RTA_VIA = 18;
export const RTA_MULTIPATH = 9;
export const RTM_F_CLONED = 0x200;
export const RT_TABLE_MAIN = 254;
export const RT_TABLE_LOCAL = 255;
export const RTPROT_KERNEL = 2;

export const FRA_PRIORITY = 6;
export const NTF_PROXY = 0x8;
export const NUD_PERMANENT = 0x80;
export const NUD_NOARP = 0x40;
export const NDA_DST = 1;
export const NDA_LLADDR = 2;
export const NDA_MASTER = 9;
export const IFA_F_TENTATIVE = 0x40;
export const NTF_MASTER = 0x4;
export const RTA_OIF = 4;
export const RTA_NH_ID = 30;
export const RTM_NEWNEXTHOP = 104;
export const RTM_GETNEXTHOP = 106;
/** struct nhmsg. */
export const NHMSG_SIZE = 8;
export const NHA_GROUP = 2;
export const RTNH_F_ONLINK = 4;
export const RTM_NEWQDISC = 36;
export const RTM_GETQDISC = 38;
export const RTM_NEWTCLASS = 40;
export const RTM_GETTCLASS = 42;
export const RTM_NEWTFILTER = 44;
export const RTM_GETTFILTER = 46;
/** struct tcmsg. */
export const TCMSG_SIZE = 20;
export const TCM_IFINDEX = 4;
export const TCM_HANDLE = 8;
export const TCM_PARENT = 12;
export const TCM_INFO = 16;
export const TC_H_ROOT = 0xffffffff;
export const TC_H_INGRESS = 0xfffffff1;
export const TC_H_MAJ_MASK = 0xffff0000;
export const TC_H_MIN_INGRESS = 0xfff2;
export const TC_H_MIN_EGRESS = 0xfff3;
export const TCA_KIND = 1;
export const TCA_OPTIONS = 2;
export const TCA_STAB = 8;
export const TCA_CHAIN = 11;
/** Options of some kinds. */
export const TCA_HTB_INIT = 2;
export const TCA_U32_DIVISOR = 4;
export const TCA_INGRESS_BLOCK = 13;
export const TCA_EGRESS_BLOCK = 14;
export const RTM_NEWLINKPROP = 108;
export const RTM_NEWMDB = 84;
export const RTM_GETMDB = 86;
/** struct br_port_msg, br_mdb_entry. */
export const BR_PORT_MSG_SIZE = 8;
export const BR_MDB_ENTRY_SIZE = 28;
export const MDBA_MDB = 1;
export const MDBA_SET_ENTRY = 1;
export const MDB_PERMANENT = 1;
export const IFLA_MACVLAN_MACADDR_MODE = 3;
export const IFLA_MACVLAN_MACADDR_DATA = 5;
export const IFLA_MACVLAN_BC_QUEUE_LEN = 7;
export const IFLA_MACVLAN_BC_CUTOFF = 9;
export const MACVLAN_MACADDR_SET = 3;
export const NHA_RES_GROUP = 12;
export const NHA_RES_GROUP_BUCKETS = 1;
export const NHA_RES_GROUP_IDLE_TIMER = 2;
export const NHA_RES_GROUP_UNBALANCED_TIMER = 3;
