// What the kernel tells of sockets by NETLINK_SOCK_DIAG, of all in the engine's network namespace. See sock_diag(7),
// net/unix/diag.c, net/ipv4/inet_diag.c.

import { IPPROTO_TCP } from "../sys/abi/inet.ts";
import * as nl from "../sys/abi/netlink.ts";
import { AF_INET6, AF_PACKET, AF_UNIX } from "../sys/abi/socket.ts";
import { attributes, eachAttribute, netlinkList, type NetlinkList } from "../sys/netlink.ts";

export interface UnixSocket {
  readonly inode: number;
  /** SOCK_… */
  readonly type: number;
  /** TCP_ESTABLISHED, TCP_CLOSE, TCP_LISTEN; a datagram socket that others are connected to is ESTABLISHED too. */
  readonly state: number;
  /** As the kernel has it: a path with its zero, an abstract name with the zero before it, empty when not bound. */
  readonly name: Buffer;
  /** Of a socket bound to a path: the file's inode, and its device in the kernel's own encoding. */
  readonly file: { readonly inode: number; readonly device: number } | undefined;
  /** Inode of the peer; 0 when it is closed or not accepted yet, undefined when there is none. */
  readonly peer: number | undefined;
  /** Of a listener: inodes of those who wait to be accepted, first come first; 0 for one that is closed again. */
  readonly waiting: readonly number[];
  /** Bytes to be read; of a datagram socket, in the first one; of a listener, how many wait. */
  readonly receiveQueue: number;
  /** Bytes sent and not read yet, with the kernel's overhead; of a listener, the backlog. */
  readonly sendQueue: number;
  /** Bits: 1 no more reading, 2 no more writing. */
  readonly shutdown: number;
}

/** All unix sockets. @throws RepriseError SYSCALL */
export function readUnixSockets(): UnixSocket[] {
  return parseUnixSockets(listUnixSockets());
}

/** What the kernel tells of all unix sockets, to be compared with what it tells later. @throws RepriseError SYSCALL */
export function listUnixSockets(): NetlinkList {
  const body = Buffer.alloc(nl.UNIX_DIAG_REQ_SIZE);
  body.writeUInt8(AF_UNIX, 0);
  body.writeUInt32LE(0xffff_ffff, 4);
  const shown =
    nl.UDIAG_SHOW_NAME |
    nl.UDIAG_SHOW_VFS |
    nl.UDIAG_SHOW_PEER |
    nl.UDIAG_SHOW_ICONS |
    nl.UDIAG_SHOW_RQLEN;
  body.writeUInt32LE(shown, 12);
  return list(body);
}

/** The sockets of a list, in its order. */
export function parseUnixSockets(sockets: NetlinkList): UnixSocket[] {
  return sockets.bodies().map(parseUnix);
}

export interface InetSocket {
  readonly family: number;
  /** TCP_… */
  readonly state: number;
  readonly inode: number;
  readonly sourcePort: number;
  readonly destinationPort: number;
  /** 4 or 16 bytes of each, in network order. */
  readonly source: Buffer;
  readonly destination: Buffer;
  /** Index of the device that it is bound to; 0 for none. */
  readonly device: number;
  /** Bytes to be read; of a listener, how many wait to be accepted. */
  readonly receiveQueue: number;
  /** Bytes not acknowledged; of a listener, the backlog. */
  readonly sendQueue: number;
  readonly uid: number;
  readonly shutdown: number;
  readonly v6only: boolean;
}

/**
 * All sockets of a family (AF_INET, AF_INET6) and protocol (IPPROTO_…) in any state.
 * @throws RepriseError SYSCALL; ENOENT when the kernel has no diagnosis for this protocol.
 */
export function readInetSockets(family: number, protocol: number): InetSocket[] {
  return parseInetSockets(listInetSockets(family, protocol));
}

/** What is told of them, to be compared with what is told later. @throws RepriseError as `readInetSockets` does */
export function listInetSockets(family: number, protocol: number): NetlinkList {
  const body = Buffer.alloc(nl.INET_DIAG_REQ_SIZE);
  body.writeUInt8(family, 0);
  body.writeUInt8(protocol, 1);
  body.writeUInt32LE(0xffff_ffff, 4);
  return list(body);
}

/** The sockets of a list, in its order. */
export function parseInetSockets(sockets: NetlinkList): InetSocket[] {
  return sockets.bodies().map(parseInet);
}

/** A key of TCP_MD5SIG and the addresses for which it is used. */
export interface TcpKey {
  readonly family: number;
  /** Bits of the address that count. */
  readonly prefix: number;
  /** 4 or 16 bytes, in network order. */
  readonly address: Buffer;
  readonly key: Buffer;
}

/**
 * Keys of all TCP sockets of a family that have this port, by inode; nothing of sockets without keys. They are told to those with
 * CAP_NET_ADMIN only.
 * @throws RepriseError SYSCALL
 */
export function readTcpKeys(family: number, port: number): Map<number, TcpKey[]> {
  const body = Buffer.alloc(nl.INET_DIAG_REQ_SIZE);
  body.writeUInt8(family, 0);
  body.writeUInt8(IPPROTO_TCP, 1);
  // The keys come with struct tcp_info only.
  body.writeUInt8(1 << (nl.INET_DIAG_INFO - 1), 2);
  body.writeUInt32LE(0xffff_ffff, 4);
  body.writeUInt16BE(port, 8);
  return new Map(
    ask(body).flatMap((answer) => {
      const keys = attributes(answer, nl.INET_DIAG_MSG_SIZE).get(nl.INET_DIAG_MD5SIG);
      return keys === undefined ? [] : [[answer.readUInt32LE(INODE_AT), parseKeys(keys)] as const];
    }),
  );
}

function parseKeys(bytes: Buffer): TcpKey[] {
  const count = Math.floor(bytes.length / nl.TCP_DIAG_MD5SIG_SIZE);
  return Array.from({ length: count }, (_, index) => {
    const one = bytes.subarray(
      index * nl.TCP_DIAG_MD5SIG_SIZE,
      (index + 1) * nl.TCP_DIAG_MD5SIG_SIZE,
    );
    const family = one.readUInt8(0);
    return {
      family,
      prefix: one.readUInt8(1),
      address: one.subarray(4, 4 + (family === AF_INET6 ? 16 : 4)),
      key: one.subarray(20, 20 + one.readUInt16LE(2)),
    };
  });
}

/** A packet socket (AF_PACKET). */
export interface PacketSocket {
  readonly inode: number;
  /** SOCK_RAW, SOCK_DGRAM, or the old SOCK_PACKET. */
  readonly type: number;
  /** ETH_P_… */
  readonly protocol: number;
  /** Index of the device that it is bound to; 0 for all. */
  readonly device: number;
  readonly version: number;
  readonly reserve: number;
  readonly copyThreshold: number;
  readonly timestamp: number;
  /** PDI_… */
  readonly flags: number;
  readonly memberships: readonly PacketMembership[];
  /** Number and type of its fanout group. */
  readonly fanout: number | undefined;
  readonly receiveRing: PacketRing | undefined;
  readonly sendRing: PacketRing | undefined;
}

export interface PacketMembership {
  readonly device: number;
  readonly type: number;
  readonly count: number;
  readonly address: Buffer;
}

export interface PacketRing {
  readonly blockSize: number;
  readonly blocks: number;
  readonly frameSize: number;
  readonly frames: number;
  readonly retireTimeout: number;
  readonly privateSize: number;
  readonly features: number;
}

/** All packet sockets. @throws RepriseError SYSCALL; ENOENT when the kernel has no diagnosis for them. */
export function readPacketSockets(): PacketSocket[] {
  const body = Buffer.alloc(nl.PACKET_DIAG_REQ_SIZE);
  body.writeUInt8(AF_PACKET, 0);
  const shown =
    nl.PACKET_SHOW_INFO | nl.PACKET_SHOW_MCLIST | nl.PACKET_SHOW_RING_CFG | nl.PACKET_SHOW_FANOUT;
  body.writeUInt32LE(shown, 8);
  return ask(body).map(parsePacket);
}

function ask(body: Buffer): Buffer[] {
  return list(body).bodies();
}

function list(body: Buffer): NetlinkList {
  return netlinkList({ protocol: nl.NETLINK_SOCK_DIAG, type: nl.SOCK_DIAG_BY_FAMILY, body });
}

/** Without a table of the attributes: there may be thousands of sockets. */
function parseUnix(body: Buffer): UnixSocket {
  let [name, waiting, file]: [Buffer, readonly number[], UnixSocket["file"]] = [
    NOTHING,
    NOBODY,
    undefined,
  ];
  let peer: number | undefined;
  let [receiveQueue, sendQueue, shutdown] = [0, 0, 0];
  eachAttribute(body, nl.UNIX_DIAG_MSG_SIZE, (type, start, end) => {
    switch (type) {
      case nl.UNIX_DIAG_NAME:
        name = body.subarray(start, end);
        break;
      case nl.UNIX_DIAG_VFS:
        file = { inode: body.readUInt32LE(start), device: body.readUInt32LE(start + 4) };
        break;
      case nl.UNIX_DIAG_PEER:
        peer = body.readUInt32LE(start);
        break;
      case nl.UNIX_DIAG_ICONS:
        waiting = Array.from({ length: (end - start) / 4 }, (_, index) =>
          body.readUInt32LE(start + index * 4),
        );
        break;
      case nl.UNIX_DIAG_RQLEN:
        receiveQueue = body.readUInt32LE(start);
        sendQueue = body.readUInt32LE(start + 4);
        break;
      case nl.UNIX_DIAG_SHUTDOWN:
        shutdown = body.readUInt8(start);
        break;
    }
  });
  return {
    inode: body.readUInt32LE(4),
    type: body.readUInt8(1),
    state: body.readUInt8(2),
    name,
    file,
    peer,
    waiting,
    receiveQueue,
    sendQueue,
    shutdown,
  };
}

const NOTHING = Buffer.alloc(0);
const NOBODY: readonly number[] = [];

/** Where struct inet_diag_msg has the inode. */
const INODE_AT = 68;

/** Offsets in struct inet_diag_msg: the addresses (struct inet_diag_sockid) begin at 4. */
function parseInet(body: Buffer): InetSocket {
  const family = body.readUInt8(0);
  const size = family === AF_INET6 ? 16 : 4;
  const found = attributes(body, nl.INET_DIAG_MSG_SIZE);
  return {
    family,
    state: body.readUInt8(1),
    sourcePort: body.readUInt16BE(4),
    destinationPort: body.readUInt16BE(6),
    source: Buffer.from(body.subarray(8, 8 + size)),
    destination: Buffer.from(body.subarray(24, 24 + size)),
    device: body.readUInt32LE(40),
    receiveQueue: body.readUInt32LE(56),
    sendQueue: body.readUInt32LE(60),
    uid: body.readUInt32LE(64),
    inode: body.readUInt32LE(INODE_AT),
    shutdown: found.get(nl.INET_DIAG_SHUTDOWN)?.readUInt8(0) ?? 0,
    v6only: (found.get(nl.INET_DIAG_SKV6ONLY)?.readUInt8(0) ?? 0) !== 0,
  };
}

/** struct packet_diag_info, packet_diag_mclist, packet_diag_ring. */
function parsePacket(body: Buffer): PacketSocket {
  const found = attributes(body, nl.PACKET_DIAG_MSG_SIZE);
  const info = found.get(nl.PACKET_DIAG_INFO);
  const word = (index: number): number => info?.readUInt32LE(index * 4) ?? 0;
  const members = found.get(nl.PACKET_DIAG_MCLIST) ?? Buffer.alloc(0);
  const count = Math.floor(members.length / nl.PACKET_DIAG_MCLIST_SIZE);
  return {
    type: body.readUInt8(1),
    protocol: body.readUInt16LE(2),
    inode: body.readUInt32LE(4),
    device: word(0),
    version: word(1),
    reserve: word(2),
    copyThreshold: word(3),
    timestamp: word(4),
    flags: word(5),
    memberships: Array.from({ length: count }, (_, index) => {
      const at = index * nl.PACKET_DIAG_MCLIST_SIZE;
      return {
        device: members.readUInt32LE(at),
        count: members.readUInt32LE(at + 4),
        type: members.readUInt16LE(at + 8),
        address: members.subarray(at + 12, at + 12 + members.readUInt16LE(at + 10)),
      };
    }),
    fanout: found.get(nl.PACKET_DIAG_FANOUT)?.readUInt32LE(0),
    receiveRing: parseRing(found.get(nl.PACKET_DIAG_RX_RING)),
    sendRing: parseRing(found.get(nl.PACKET_DIAG_TX_RING)),
  };
}

function parseRing(ring: Buffer | undefined): PacketRing | undefined {
  if (ring === undefined) return undefined;
  const word = (index: number): number => ring.readUInt32LE(index * 4);
  return {
    blockSize: word(0),
    blocks: word(1),
    frameSize: word(2),
    frames: word(3),
    retireTimeout: word(4),
    privateSize: word(5),
    features: word(6),
  };
}
