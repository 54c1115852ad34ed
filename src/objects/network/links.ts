// The devices of a network namespace as the images hold them. The kernel tells each device with its kind and settings
// (RTM_GETLINK, rtnetlink(7)); a device may be tied to another one, its peer or parent, perhaps in another namespace, which is
// told by a number that the two namespaces know. format.md section 14, netdev.

import { RepriseError } from "../../errors.ts";
import type { MessageInput } from "../../images/codec.ts";
import type { NetDeviceEntry, SitEntry } from "../../images/schema/messages.generated.ts";
import * as rt from "../../sys/abi/rtnetlink.ts";
import { AF_BRIDGE, AF_PACKET, AF_UNSPEC } from "../../sys/abi/socket.ts";
import {
  attribute,
  attributeList,
  attributes,
  encodeMessage,
  type NetlinkSocket,
} from "../../sys/netlink.ts";
import type { NetSettings } from "./sysctls.ts";
import { tunLinkEntry, type TunStates } from "./tun-device.ts";

/** nd_type of the images. */
export const ND = {
  LOOPBACK: 1,
  VETH: 2,
  TUN: 3,
  EXTLINK: 4,
  VENET: 5,
  BRIDGE: 6,
  MACVLAN: 7,
  SIT: 8,
} as const;

const ND_BY_KIND: Readonly<Record<string, number>> = {
  veth: ND.VETH,
  tun: ND.TUN,
  bridge: ND.BRIDGE,
  macvlan: ND.MACVLAN,
  sit: ND.SIT,
  venet: ND.VENET,
};

/** Devices that the kernel makes with every namespace, when it has their kind at all. */
const MADE_BY_KERNEL = new Set([
  "gre0",
  "gretap0",
  "erspan0",
  "sit0",
  "tunl0",
  "ip6tnl0",
  "ip6gre0",
  "ip_vti0",
  "ip6_vti0",
]);

/** Settings of a device that CRIU does not save, as they are told and set. */
const FURTHER = [
  rt.IFLA_TXQLEN,
  rt.IFLA_IFALIAS,
  rt.IFLA_GROUP,
  rt.IFLA_NUM_TX_QUEUES,
  rt.IFLA_NUM_RX_QUEUES,
  rt.IFLA_PROP_LIST,
];

/** A device as the kernel tells of it. */
export interface Link {
  readonly index: number;
  readonly flags: number;
  /** ARPHRD_… */
  readonly type: number;
  readonly name: string;
  /** "veth", "bridge"; undefined for hardware and the loopback device. */
  readonly kind: string | undefined;
  readonly attributes: ReadonlyMap<number, Buffer>;
  /** IFLA_INFO_… */
  readonly info: ReadonlyMap<number, Buffer>;
}

/** All devices in the socket's namespace. @throws RepriseError SYSCALL */
export function readLinks(socket: NetlinkSocket): Link[] {
  const body = Buffer.alloc(rt.IFINFOMSG_SIZE);
  body.writeUInt8(AF_PACKET, 0);
  return socket.dump({ type: rt.RTM_GETLINK, body }).map(parseLink);
}

/** What a device is written from, besides itself. */
export interface LinkDump {
  /** The image's number of the device's namespace. */
  readonly namespace: number;
  /** Image's number of a namespace, by the number that the device's own namespace has for it. */
  readonly namespaces: ReadonlyMap<number, number>;
  readonly settings: NetSettings;
  /** `--external`: devices that the caller brings to the restore. */
  isExternal(device: string): boolean;
  readonly neighbours: ReadonlyMap<number, readonly Buffer[]>;
  readonly tuns: TunStates;
}

/**
 * Entries of netdev-N.img.
 * @throws RepriseError UNSUPPORTED naming the device that cannot be made again.
 */
export function linkEntries(
  links: readonly Link[],
  dump: LinkDump,
): MessageInput<NetDeviceEntry>[] {
  return links
    .filter(({ name, kind }) => kind === undefined || !MADE_BY_KERNEL.has(name))
    .map((link) => linkEntry(link, dump));
}

function linkEntry(link: Link, dump: LinkDump): MessageInput<NetDeviceEntry> {
  const type = typeOf(link, dump);
  const word = (attr: number): number | undefined => link.attributes.get(attr)?.readUInt32LE(0);
  const elsewhere = link.attributes.get(rt.IFLA_LINK_NETNSID)?.readInt32LE(0);
  const peerNamespace =
    elsewhere === undefined || elsewhere < 0 ? dump.namespace : dump.namespaces.get(elsewhere);
  const address = type === ND.LOOPBACK ? undefined : link.attributes.get(rt.IFLA_ADDRESS);
  const master = word(rt.IFLA_MASTER);
  const neighbours = dump.neighbours.get(link.index);
  return {
    type,
    ifindex: link.index,
    mtu: word(rt.IFLA_MTU) ?? 0,
    flags: link.flags,
    name: link.name,
    ...(type === ND.TUN ? { tun: tunLinkEntry(link, dump.tuns) } : {}),
    ...(address === undefined ? {} : { address }),
    ...dump.settings.device(link.name),
    ...(type === ND.MACVLAN ? { macvlan: macvlanEntry(link) } : {}),
    peer_ifindex: word(rt.IFLA_LINK) ?? link.index,
    ...(peerNamespace === undefined ? {} : { peer_nsid: peerNamespace }),
    ...(master === undefined ? {} : { master }),
    ...(type === ND.SIT ? { sit: sitEntry(link) } : {}),
    ...(link.kind === undefined ? {} : { link_info: link.attributes.get(rt.IFLA_LINKINFO) }),
    link_attributes: Buffer.concat(
      FURTHER.flatMap((attr) => {
        const value = link.attributes.get(attr);
        return value === undefined ? [] : [attribute(attr, value)];
      }),
    ),
    ...(neighbours === undefined ? {} : { neighbours: Buffer.concat(neighbours) }),
  };
}

/**
 * Kinds that CRIU does not know are devices to it that the caller makes; we make them from `link_info`. Hardware can only be
 * brought by the caller.
 */
function typeOf(link: Link, dump: LinkDump): number {
  if (link.type === rt.ARPHRD_LOOPBACK) return ND.LOOPBACK;
  if (link.kind !== undefined) return ND_BY_KIND[link.kind] ?? ND.EXTLINK;
  if (dump.isExternal(link.name)) return ND.EXTLINK;
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump network device ${link.name}: it is hardware, or of a kind that does not tell its name`,
    {
      hint: `Give it to the restore by --external 'netdev[${link.name}]:DEVICE' at dump and restore, or move it out of the namespace.`,
    },
  );
}

function macvlanEntry(link: Link): NetDeviceEntry["macvlan"] {
  const data = attributes(link.info.get(rt.IFLA_INFO_DATA) ?? Buffer.alloc(0), 0);
  const flags = data.get(rt.IFLA_MACVLAN_FLAGS)?.readUInt16LE(0);
  return {
    mode: data.get(rt.IFLA_MACVLAN_MODE)?.readUInt32LE(0) ?? 0,
    ...(flags === undefined ? {} : { flags }),
  };
}

function sitEntry(link: Link): MessageInput<SitEntry> {
  const data = attributes(link.info.get(rt.IFLA_INFO_DATA) ?? Buffer.alloc(0), 0);
  const u8 = (attr: number): number | undefined => data.get(attr)?.readUInt8(0);
  const u16 = (attr: number): number | undefined => data.get(attr)?.readUInt16LE(0);
  const address = (attr: number): number[] => {
    const word = data.get(attr)?.readUInt32LE(0) ?? 0;
    return word === 0 ? [] : [word];
  };
  const prefixLength = u16(rt.IFLA_IPTUN_6RD_PREFIXLEN) ?? 0;
  const relayLength = u16(rt.IFLA_IPTUN_6RD_RELAY_PREFIXLEN) ?? 0;
  const prefix = data.get(rt.IFLA_IPTUN_6RD_PREFIX);
  return {
    link: data.get(rt.IFLA_IPTUN_LINK)?.readUInt32LE(0),
    local: address(rt.IFLA_IPTUN_LOCAL),
    remote: address(rt.IFLA_IPTUN_REMOTE),
    ttl: u8(rt.IFLA_IPTUN_TTL),
    tos: u8(rt.IFLA_IPTUN_TOS),
    pmtudisc: (u8(rt.IFLA_IPTUN_PMTUDISC) ?? 0) === 0 ? undefined : true,
    proto: u8(rt.IFLA_IPTUN_PROTO),
    flags: u16(rt.IFLA_IPTUN_FLAGS),
    encap_type: u16(rt.IFLA_IPTUN_ENCAP_TYPE),
    encap_flags: u16(rt.IFLA_IPTUN_ENCAP_FLAGS),
    encap_sport: u16(rt.IFLA_IPTUN_ENCAP_SPORT),
    encap_dport: u16(rt.IFLA_IPTUN_ENCAP_DPORT),
    ...(prefixLength === 0 || prefix === undefined
      ? {}
      : {
          rd_prefixlen: prefixLength,
          rd_prefix: [0, 4, 8, 12].map((at) => prefix.readUInt32LE(at)),
          ...(relayLength === 0
            ? {}
            : {
                relay_prefixlen: relayLength,
                relay_prefix: [data.get(rt.IFLA_IPTUN_6RD_RELAY_PREFIX)?.readUInt32LE(0) ?? 0],
              }),
        }),
  };
}

/**
 * What somebody has written down about neighbours, by device: addresses, proxies, and where a bridge or a vxlan finds them. What
 * the kernel has found out it finds out again.
 */
export function readNeighbours(
  socket: NetlinkSocket,
  links: readonly Link[],
): Map<number, Buffer[]> {
  const isBridged = links.some(({ kind }) => kind === "bridge");
  const found = isBridged ? readGroups(socket) : new Map<number, Buffer[]>();
  for (const [family, flags] of [
    [AF_UNSPEC, 0],
    [AF_UNSPEC, rt.NTF_PROXY],
    [AF_BRIDGE, 0],
  ] as const) {
    const body = Buffer.alloc(rt.NDMSG_SIZE);
    body.writeUInt8(family, 0);
    body.writeUInt8(flags, NDM_FLAGS);
    for (const message of socket.dumpMessages({ type: rt.RTM_GETNEIGH, body })) {
      const isKept = family === AF_BRIDGE ? isForwarding(message.body) : isWritten(message.body);
      if (message.type !== rt.RTM_NEWNEIGH || !isKept) continue;
      const index = message.body.readInt32LE(NDM_IFINDEX);
      const entry = encodeMessage({ ...message, flags: 0 });
      found.set(index, [...(found.get(index) ?? []), entry]);
    }
  }
  return found;
}

/** Offsets in struct ndmsg. */
const NDM_IFINDEX = 4;
const NDM_STATE = 8;
const NDM_FLAGS = 10;

function isWritten(body: Buffer): boolean {
  return (
    (body.readUInt8(NDM_FLAGS) & rt.NTF_PROXY) !== 0 ||
    (body.readUInt16LE(NDM_STATE) & rt.NUD_PERMANENT) !== 0
  );
}

/**
 * Where a bridge or a vxlan finds an address, and further addresses of a device. A bridge's permanent entries are its ports' own
 * addresses; multicast ones come with the groups that are joined.
 */
function isForwarding(body: Buffer): boolean {
  const found = attributes(body, rt.NDMSG_SIZE);
  if (!found.has(rt.NDA_MASTER)) return found.has(rt.NDA_DST) || !isGroup(found.get(rt.NDA_LLADDR));
  if ((body.readUInt16LE(NDM_STATE) & rt.NUD_NOARP) === 0) return false;
  // So it is told to the bridge, and not to the port.
  body.writeUInt8(body.readUInt8(NDM_FLAGS) | rt.NTF_MASTER, NDM_FLAGS);
  return true;
}

/** Whether a hardware address is one of many devices (IEEE 802: the first byte's lowest bit), or missing. */
export function isGroup(address: Buffer | undefined): boolean {
  return ((address?.[0] ?? 1) & 1) !== 0;
}

/** Groups that somebody has put into a bridge's table for good (bridge-mdb(8)), as the messages that do so, by bridge. */
function readGroups(socket: NetlinkSocket): Map<number, Buffer[]> {
  const body = Buffer.alloc(rt.BR_PORT_MSG_SIZE);
  body.writeUInt8(AF_BRIDGE, 0);
  const found = new Map<number, Buffer[]>();
  for (const { type, body: told } of socket.dumpMessages({ type: rt.RTM_GETMDB, body })) {
    if (type !== rt.RTM_NEWMDB && type !== rt.RTM_GETMDB) continue;
    const header = Buffer.from(told.subarray(0, rt.BR_PORT_MSG_SIZE));
    header.writeUInt8(AF_BRIDGE, 0);
    const table = attributes(told, rt.BR_PORT_MSG_SIZE).get(rt.MDBA_MDB) ?? Buffer.alloc(0);
    const infos = attributeList(table).flatMap((entry) => attributeList(entry));
    for (const info of infos) {
      const entry = info.subarray(0, rt.BR_MDB_ENTRY_SIZE);
      if (entry[MDB_STATE] !== rt.MDB_PERMANENT) continue;
      const cleared = Buffer.from(entry);
      // Told only: whether hardware has it.
      cleared.writeUInt8(0, MDB_FLAGS);
      const message = Buffer.concat([header, attribute(rt.MDBA_SET_ENTRY, cleared)]);
      const bridge = header.readInt32LE(4);
      const of = found.get(bridge) ?? [];
      found.set(bridge, [...of, encodeMessage({ type: rt.RTM_NEWMDB, flags: 0, body: message })]);
    }
  }
  return found;
}

/** Offsets in struct br_mdb_entry. */
const MDB_STATE = 4;
const MDB_FLAGS = 5;

function parseLink(body: Buffer): Link {
  const found = attributes(body, rt.IFINFOMSG_SIZE);
  const info = attributes(found.get(rt.IFLA_LINKINFO) ?? Buffer.alloc(0), 0);
  const text = (bytes: Buffer): string => bytes.toString("latin1").replace(/\0.*$/s, "");
  const kind = info.get(rt.IFLA_INFO_KIND);
  return {
    type: body.readUInt16LE(2),
    index: body.readInt32LE(4),
    flags: body.readUInt32LE(8),
    name: text(found.get(rt.IFLA_IFNAME) ?? Buffer.alloc(0)),
    kind: kind === undefined ? undefined : text(kind),
    attributes: found,
    info,
  };
}
