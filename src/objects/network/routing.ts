// Addresses, routes and routing rules of a network namespace. Images hold what ip(8) saves: a magic number and the kernel's
// own messages, one behind the other (ip-address(8), ip-route(8), ip-rule(8): save and restore). format.md section 14.

import { RepriseError } from "../../errors.ts";
import { NLA_F_NESTED, NLM_F_CREATE } from "../../sys/abi/netlink.ts";
import * as rt from "../../sys/abi/rtnetlink.ts";
import { AF_INET, AF_INET6, AF_UNSPEC } from "../../sys/abi/socket.ts";
import { EEXIST, ENOENT, EOPNOTSUPP, errnoName } from "../../sys/errno.ts";
import {
  attribute,
  attributes,
  decodeMessages,
  encodeMessage,
  u32,
  type NetlinkMessage,
  type NetlinkSocket,
} from "../../sys/netlink.ts";
import { chosen } from "./link-attributes.ts";
import { readLinks } from "./links.ts";

/** The raw images that ip(8) writes, with their magic numbers. */
const MAGIC = {
  ifaddr: 0x47361222,
  route: 0x45311224,
  route6: 0x45311224,
  rule: 0x71706986,
} as const;

export type RoutingImage = keyof typeof MAGIC;

/** Contents of the four images. @throws RepriseError SYSCALL */
export function readRouting(socket: NetlinkSocket): Readonly<Record<RoutingImage, Buffer>> {
  const image = (kind: RoutingImage, messages: readonly NetlinkMessage[]): Buffer =>
    Buffer.concat([u32(MAGIC[kind]), ...messages.map((message) => encodeMessage(message))]);
  return {
    ifaddr: image("ifaddr", addresses(socket)),
    route: image("route", routes(socket, AF_INET)),
    route6: image("route6", routes(socket, AF_INET6)),
    rule: image("rule", [
      ...rules(socket, AF_INET),
      ...rules(socket, AF_INET6).filter((rule) => !isDefaultRule(rule)),
    ]),
  };
}

/**
 * Gives the devices their addresses, and takes away what the kernel has given them by itself. Those of which nobody knew yet
 * whether they are free are left for `tryAddresses`.
 *
 * @throws RepriseError SYSCALL
 */
export function restoreAddresses(socket: NetlinkSocket, content: Buffer): void {
  if (content.length === 0) return;
  const wanted = messagesOf("ifaddr", content).filter((message) => !isTentative(message));
  for (const message of wanted) must(socket, "address", message);
  const keys = new Set(wanted.map(addressKey));
  for (const message of addresses(socket)) {
    if (keys.has(addressKey(message))) continue;
    socket.tryRequest({ type: rt.RTM_DELADDR, body: message.body });
  }
}

/** Adds the addresses that were being tried out: the kernel tries them out anew. @throws RepriseError SYSCALL */
export function tryAddresses(socket: NetlinkSocket, content: Buffer): void {
  for (const message of messagesOf("ifaddr", content)) {
    if (isTentative(message)) must(socket, "address", message);
  }
}

/** Next hops that routes name by their numbers (ip-nexthop(8)); CRIU does not know them. @throws RepriseError SYSCALL */
export function readNexthops(socket: NetlinkSocket): Buffer {
  const body = Buffer.alloc(rt.NHMSG_SIZE);
  const messages = dumpFamily(socket, { type: rt.RTM_GETNEXTHOP, body });
  return Buffer.concat(messages.map((message) => encodeMessage(message)));
}

/** Groups come after those who are in them. @throws RepriseError SYSCALL */
export function restoreNexthops(socket: NetlinkSocket, content: Uint8Array): void {
  const wanted = decodeMessages(Buffer.from(content)).map(({ type, body }) => {
    const parts = [...attributes(body, rt.NHMSG_SIZE)].filter(([one]) => NH_SETTINGS.includes(one));
    const copy = Buffer.concat([
      body.subarray(0, rt.NHMSG_SIZE),
      ...parts.map(([one, value]) =>
        one === rt.NHA_RES_GROUP
          ? attribute(one, chosen(attributes(value, 0), BUCKETS))
          : attribute(NESTED.includes(one) ? one | NLA_F_NESTED : one, value),
      ),
    ]);
    copy.writeUInt8(0, NH_SCOPE);
    copy.writeUInt32LE(copy.readUInt32LE(NH_FLAGS) & rt.RTNH_F_ONLINK, NH_FLAGS);
    return { type, body: copy, isGroup: attributes(copy, rt.NHMSG_SIZE).has(rt.NHA_GROUP) };
  });
  for (const message of wanted.toSorted((a, b) => Number(a.isGroup) - Number(b.isGroup))) {
    must(socket, "next hop", message);
  }
}

/** NHA_ID to NHA_ENCAP, NHA_FDB, NHA_RES_GROUP: the others tell what happens. */
const NH_SETTINGS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12];
/** NHA_ENCAP. */
const NESTED = [8];
/** Of a resilient group; it also tells for how long it has been unbalanced. */
const BUCKETS = [
  rt.NHA_RES_GROUP_BUCKETS,
  rt.NHA_RES_GROUP_IDLE_TIMER,
  rt.NHA_RES_GROUP_UNBALANCED_TIMER,
];

/** Offsets in struct nhmsg: what is told there, and refused when it is set. */
const NH_SCOPE = 1;
const NH_FLAGS = 4;

/** @throws RepriseError SYSCALL */
export function restoreRoutes(
  socket: NetlinkSocket,
  kind: "route" | "route6",
  content: Buffer,
): void {
  const wanted = messagesOf(kind, content);
  // A gateway can be named only when there is a route to it, a source only when it is an address.
  const ranks = wanted.map((message) => ({ message, rank: routeRank(message) }));
  for (const { message } of ranks.toSorted((a, b) => a.rank - b.rank)) {
    must(socket, "route", { ...message, body: byNexthop(withoutState(message.body)) });
  }
}

/** @throws RepriseError SYSCALL */
export function restoreRules(socket: NetlinkSocket, content: Buffer): void {
  const wanted = messagesOf("rule", content);
  if (content.length === 0) return;
  const key = ({ body }: NetlinkMessage): string => body.toString("latin1");
  const now = rules(socket, AF_INET);
  const same = new Set(now.map(key));
  const keep = new Set(wanted.map(key));
  for (const message of now) {
    if (!keep.has(key(message))) must(socket, "rule", { type: rt.RTM_DELRULE, body: message.body });
  }
  for (const message of wanted) if (!same.has(key(message))) must(socket, "rule", message);
}

/** How long the kernel may take to use addresses that it need not try out; and how often it is asked. */
const SETTLE_MS = 500;
const SETTLE_STEP_MS = 1;

/** Waits until addresses are in use: the kernel decides in the background that they need not be tried out. */
export function settleAddresses(socket: NetlinkSocket): void {
  const up = new Set(
    readLinks(socket).flatMap(({ index, flags }) => ((flags & rt.IFF_UP) === 0 ? [] : [index])),
  );
  const waits = (message: NetlinkMessage): boolean =>
    up.has(message.body.readUInt32LE(4)) && isTentative(message);
  const clock = new Int32Array(new SharedArrayBuffer(4));
  for (const end = performance.now() + SETTLE_MS; performance.now() < end;) {
    if (!addresses(socket).some(waits)) return;
    Atomics.wait(clock, 0, 0, SETTLE_STEP_MS);
  }
}

function isTentative({ body }: NetlinkMessage): boolean {
  const flags =
    attributes(body, rt.IFADDRMSG_SIZE).get(rt.IFA_FLAGS)?.readUInt32LE(0) ?? body[2] ?? 0;
  return body[0] === AF_INET6 && (flags & rt.IFA_F_TENTATIVE) !== 0;
}

function addresses(socket: NetlinkSocket): NetlinkMessage[] {
  const body = Buffer.alloc(rt.IFADDRMSG_SIZE);
  body.writeUInt8(AF_UNSPEC, 0);
  return socket
    .dumpMessages({ type: rt.RTM_GETADDR, body })
    .filter(({ type }) => type === rt.RTM_NEWADDR);
}

/** Of all tables; routes that the kernel keeps for its own addresses come back with them. */
function routes(socket: NetlinkSocket, family: number): NetlinkMessage[] {
  const body = Buffer.alloc(rt.RTMSG_SIZE);
  body.writeUInt8(family, 0);
  return dumpFamily(socket, { type: rt.RTM_GETROUTE, body })
    .filter(({ type, body: route }) => {
      const isCopy = (route.readUInt32LE(RTM_FLAGS) & rt.RTM_F_CLONED) !== 0;
      const isKernels =
        tableOf(route) === rt.RT_TABLE_LOCAL && route[RTM_PROTOCOL] === rt.RTPROT_KERNEL;
      return type === rt.RTM_NEWROUTE && route[0] === family && !isCopy && !isKernels;
    })
    .map((message) => ({ ...message, body: withoutState(message.body) }));
}

function rules(socket: NetlinkSocket, family: number): NetlinkMessage[] {
  const body = Buffer.alloc(rt.RULE_HEADER_SIZE);
  body.writeUInt8(family, 0);
  return dumpFamily(socket, { type: rt.RTM_GETRULE, body }).filter(
    ({ type, body: rule }) => type === rt.RTM_NEWRULE && rule[0] === family,
  );
}

/** Nothing where the kernel does not have the family. */
function dumpFamily(socket: NetlinkSocket, request: NetlinkMessage): NetlinkMessage[] {
  try {
    return socket.dumpMessages(request);
  } catch (error) {
    if (error instanceof RepriseError && error.errno === errnoName(EOPNOTSUPP)) return [];
    throw error;
  }
}

/** Those at 0 (local) and 32766 (main), which every namespace has for IPv6. */
function isDefaultRule({ body }: NetlinkMessage): boolean {
  const priority = attributes(body, rt.RULE_HEADER_SIZE).get(rt.FRA_PRIORITY)?.readUInt32LE(0) ?? 0;
  return priority === 0 || priority === 32766;
}

/** Offsets in struct rtmsg. */
const RTM_TABLE = 4;
const RTM_PROTOCOL = 5;
const RTM_FLAGS = 8;
/** RTNH_F_DEAD, RTNH_F_LINKDOWN, and what hardware does: told, and refused when it is set. */
const ROUTE_STATE = 0x1 | 0x10 | 0x8 | 0x40 | 0x4000 | 0x8000 | 0x20000000;

function tableOf(route: Buffer): number {
  return (
    attributes(route, rt.RTMSG_SIZE).get(rt.RTA_TABLE)?.readUInt32LE(0) ?? route[RTM_TABLE] ?? 0
  );
}

function withoutState(route: Buffer): Buffer {
  const copy = Buffer.from(route);
  copy.writeUInt32LE((copy.readUInt32LE(RTM_FLAGS) & ~ROUTE_STATE) >>> 0, RTM_FLAGS);
  const multipath = attributes(copy, rt.RTMSG_SIZE).get(rt.RTA_MULTIPATH) ?? Buffer.alloc(0);
  // struct rtnexthop, each with attributes of its own.
  for (let at = 0; at + 8 <= multipath.length;) {
    const length = multipath.readUInt16LE(at);
    multipath[at + 2] = (multipath[at + 2] ?? 0) & ~0x19;
    if (length < 8) break;
    at += Math.ceil(length / 4) * 4;
  }
  return copy;
}

/** Of a route that names its next hop by number the kernel tells both, and takes the number alone. */
function byNexthop(route: Buffer): Buffer {
  const found = attributes(route, rt.RTMSG_SIZE);
  if (!found.has(rt.RTA_NH_ID)) return route;
  const told = [rt.RTA_OIF, rt.RTA_GATEWAY, rt.RTA_VIA, rt.RTA_MULTIPATH];
  const kept = [...found].filter(([type]) => !told.includes(type));
  const parts = kept.map(([type, value]) => attribute(type, value));
  return Buffer.concat([route.subarray(0, rt.RTMSG_SIZE), ...parts]);
}

function routeRank({ body }: NetlinkMessage): number {
  const found = attributes(body, rt.RTMSG_SIZE);
  if (found.has(rt.RTA_GATEWAY) || found.has(rt.RTA_VIA) || found.has(rt.RTA_MULTIPATH)) return 2;
  return found.has(rt.RTA_PREFSRC) && body[RTM_PROTOCOL] !== rt.RTPROT_KERNEL ? 1 : 0;
}

/** Family, device, prefix and the address itself. */
function addressKey({ body }: NetlinkMessage): string {
  const found = attributes(body, rt.IFADDRMSG_SIZE);
  const address = found.get(IFA_LOCAL) ?? found.get(IFA_ADDRESS);
  return `${body[0]} ${body.readUInt32LE(4)} ${body[1]} ${address?.toString("hex")}`;
}

const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;

function messagesOf(kind: RoutingImage, content: Buffer): NetlinkMessage[] {
  // Images of a namespace that was not saved are empty.
  if (content.length === 0) return [];
  if (content.length < 4 || content.readUInt32LE(0) !== MAGIC[kind]) {
    throw new RepriseError(
      "BAD_IMAGE",
      `cannot read the ${kind} image: it has no magic number of ip(8)`,
    );
  }
  return decodeMessages(content.subarray(4));
}

function must(socket: NetlinkSocket, what: string, { type, body }: NetlinkMessage): void {
  const answer = socket.tryRequest({ type, flags: NLM_F_CREATE, body });
  if (typeof answer !== "number" || answer === -EEXIST) return;
  if (type === rt.RTM_DELRULE && answer === -ENOENT) return;
  throw new RepriseError(
    "SYSCALL",
    `cannot restore a ${what} of the network namespace: netlink: ${errnoName(-answer)}`,
    { errno: errnoName(-answer), hint: "A device that it names may be missing, or down." },
  );
}
