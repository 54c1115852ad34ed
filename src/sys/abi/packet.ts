// Packet sockets: include/uapi/linux/{if_packet,packet_diag}.h.

export const SOL_PACKET = 263;
/** The old type of packet(7), whose sockets are bound by a device's name. */
export const SOCK_PACKET = 10;

export const PACKET_ADD_MEMBERSHIP = 1;
export const PACKET_RX_RING = 5;
export const PACKET_COPY_THRESH = 7;
export const PACKET_AUXDATA = 8;
export const PACKET_ORIGDEV = 9;
export const PACKET_VERSION = 10;
export const PACKET_RESERVE = 12;
export const PACKET_TX_RING = 13;
export const PACKET_LOSS = 14;
export const PACKET_VNET_HDR = 15;
export const PACKET_TIMESTAMP = 17;
export const PACKET_FANOUT = 18;
export const PACKET_TX_HAS_OFF = 19;
export const PACKET_QDISC_BYPASS = 20;
export const PACKET_IGNORE_OUTGOING = 23;
export const PACKET_VNET_HDR_SZ = 24;

/** Types of membership that have an address. */
export const PACKET_MR_MULTICAST = 0;
export const PACKET_MR_UNICAST = 3;

export const PDI_AUXDATA = 0x2;
export const PDI_ORIGDEV = 0x4;
export const PDI_VNETHDR = 0x8;
export const PDI_LOSS = 0x10;

export const SOCKADDR_LL_SIZE = 20;
/** struct packet_mreq, with room for the longest address. */
export const PACKET_MREQ_SIZE = 8 + 32;
