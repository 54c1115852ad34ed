// Traffic control of a network namespace: queueing disciplines, their classes, and the filters that lead into them (tc(8)). The
// kernel tells each as the message that makes it, with statistics (net/sched/sch_api.c, cls_api.c); what of it is a setting is
// said again at restore, and then compared with what the kernel tells then. CRIU does not know any of it.

import { RepriseError } from "../../errors.ts";
import { log } from "../../log.ts";
import * as rt from "../../sys/abi/rtnetlink.ts";
import { errnoName } from "../../sys/errno.ts";
import {
  attribute,
  attributeList,
  attributes,
  decodeMessages,
  encodeMessage,
  type NetlinkMessage,
  type NetlinkSocket,
} from "../../sys/netlink.ts";
import type { Link } from "./links.ts";
import { NLM_F_CREATE, NLM_F_REPLACE } from "../../sys/abi/netlink.ts";

/** Disciplines whose options are told as they are taken. */
const DISCIPLINES: readonly string[] = [
  "pfifo",
  "bfifo",
  "pfifo_head_drop",
  "pfifo_fast",
  "tbf",
  "htb",
  "prio",
  "sfq",
  "fq",
  "fq_codel",
  "codel",
  "ingress",
  "clsact",
];
/** Of these the classes come with the discipline. */
const OF_ITSELF: readonly string[] = ["tbf", "prio", "sfq", "fq_codel", "ingress", "clsact", "mq"];
const FILTERS: readonly string[] = ["u32", "matchall", "basic", "fw"];
const ACTIONS: readonly string[] = ["mirred", "gact", "skbedit", "vlan"];

/** What is in a namespace, as messages one behind the other; `lost` is told of what cannot be said again. */
export function readTraffic(
  socket: NetlinkSocket,
  links: readonly Link[],
  lost: (device: string, what: string) => void,
): Buffer {
  const names = new Map(links.map(({ index, name }) => [index, name]));
  const messages = readAll(socket);
  const kept = messages.filter((message) => {
    const why = whatIsLost(message);
    if (why !== undefined) lost(names.get(deviceOf(message)) ?? "?", why);
    return why === undefined;
  });
  return Buffer.concat(kept.map((message) => encodeMessage(settings(message))));
}

/** Makes it again, and tells of what did not become what it was. */
export function restoreTraffic(socket: NetlinkSocket, content: Uint8Array): void {
  if (content.length === 0) return;
  const wanted = decodeMessages(Buffer.from(content));
  for (const message of wanted) {
    const answer = make(socket, message);
    if (answer < 0)
      log.warn(`${describe(message)} is not restored: netlink: ${errnoName(-answer)}`);
  }
  const now = new Set(readAll(socket).map((message) => keyOf(settings(message))));
  for (const message of wanted)
    if (!now.has(keyOf(message))) log.warn(`${describe(message)} is another one after the restore`);
}

/** @returns 0, or the negative error number */
function make(socket: NetlinkSocket, { type, body }: NetlinkMessage): number {
  const flags = type === rt.RTM_NEWQDISC ? NLM_F_CREATE | NLM_F_REPLACE : NLM_F_CREATE;
  const answer = socket.tryRequest({ type, flags, body });
  return typeof answer === "number" ? answer : 0;
}

/** Disciplines, classes and filters of all devices, each behind what it hangs on. Those that nobody has made have no handle. */
function readAll(socket: NetlinkSocket): NetlinkMessage[] {
  const disciplines = list(socket, rt.RTM_GETQDISC)
    .filter((message) => handleOf(message) !== 0)
    .map(withoutInfo);
  const devices = [...new Set(disciplines.map(deviceOf))];
  return devices.flatMap((device) => {
    const own = disciplines.filter((message) => deviceOf(message) === device);
    const classes = list(socket, rt.RTM_GETTCLASS, { device })
      .filter((message) => !OF_ITSELF.includes(kindOf(message)))
      .map(withoutInfo);
    const made = inOrder(own, classes);
    const places = [
      ...own.flatMap((message) => filterPlaces(message)),
      ...classes.map((message) => handleOf(message)),
    ];
    const filters = places.flatMap((parent) =>
      ordered(list(socket, rt.RTM_GETTFILTER, { device, parent })),
    );
    return [...made, ...filters];
  });
}

/** Of one device: what hangs on the device first, then classes and disciplines in the order of their parents. */
function inOrder(
  disciplines: readonly NetlinkMessage[],
  classes: readonly NetlinkMessage[],
): NetlinkMessage[] {
  let left = [...disciplines, ...classes];
  const sorted: NetlinkMessage[] = [];
  const there = new Set<number>([rt.TC_H_ROOT, rt.TC_H_INGRESS]);
  const isReady = (message: NetlinkMessage): boolean => {
    const major = (handleOf(message) & rt.TC_H_MAJ_MASK) >>> 0;
    const isClass = message.type === rt.RTM_NEWTCLASS;
    return there.has(parentOf(message)) && (!isClass || there.has(major));
  };
  for (let ready = left.filter(isReady); ready.length > 0; ready = left.filter(isReady)) {
    const now = new Set(ready);
    left = left.filter((message) => !now.has(message));
    sorted.push(...ready);
    for (const message of ready) there.add(handleOf(message));
  }
  return [...sorted, ...left];
}

/** Where filters of a discipline hang. */
function filterPlaces(message: NetlinkMessage): number[] {
  const handle = handleOf(message);
  return kindOf(message) === "clsact"
    ? [(handle | rt.TC_H_MIN_INGRESS) >>> 0, (handle | rt.TC_H_MIN_EGRESS) >>> 0]
    : [handle];
}

/**
 * Filters of one place. The kernel numbers the first table of each priority of u32 filters as they are made, and does not let anybody
 * choose: so the lower number comes first. Other tables come before what is in them.
 */
function ordered(filters: readonly NetlinkMessage[]): NetlinkMessage[] {
  const roots = new Map(
    filters.filter(isRootTable).map((table) => [infoOf(table), handleOf(table)]),
  );
  const rootOf = (message: NetlinkMessage): number => roots.get(infoOf(message)) ?? 0;
  return (
    filters
      // One for each priority, without options, comes before what is in it.
      .filter((message) => handleOf(message) !== 0 && !isRootTable(message))
      .toSorted((a, b) => rootOf(a) - rootOf(b) || rankOf(a) - rankOf(b))
  );
}

function rankOf(message: NetlinkMessage): number {
  return kindOf(message) === "u32" && (handleOf(message) & U32_NODE) === 0 ? 0 : 1;
}

const U32_NODE = 0xfff;

/** The table that the kernel makes with the first filter of a priority. */
function isRootTable(message: NetlinkMessage): boolean {
  const handle = handleOf(message);
  if (kindOf(message) !== "u32" || (handle & U32_NOT_TABLE) !== 0) return false;
  const options = attributes(message.body, rt.TCMSG_SIZE).get(rt.TCA_OPTIONS);
  const divisor = attributes(options ?? Buffer.alloc(0), 0).get(rt.TCA_U32_DIVISOR);
  return handle >>> 20 >= U32_FIRST_ROOT && divisor?.readUInt32LE(0) === 1;
}

const U32_NOT_TABLE = 0xfffff;
const U32_FIRST_ROOT = 0x800;

function list(
  socket: NetlinkSocket,
  type: number,
  { device = 0, parent = 0 } = {},
): NetlinkMessage[] {
  const body = Buffer.alloc(rt.TCMSG_SIZE);
  body.writeInt32LE(device, rt.TCM_IFINDEX);
  body.writeUInt32LE(parent, rt.TCM_PARENT);
  try {
    // The answer to GET is NEW, two numbers before.
    return socket.dumpMessages({ type, body }).filter((message) => message.type === type - 2);
  } catch (error) {
    // A discipline that has no classes or filters.
    if (error instanceof RepriseError && error.code === "SYSCALL") return [];
    throw error;
  }
}

/** What of a message cannot be said again; undefined when all can. */
function whatIsLost(message: NetlinkMessage): string | undefined {
  const kind = kindOf(message);
  const found = attributes(message.body, rt.TCMSG_SIZE);
  const isShared = found.has(rt.TCA_INGRESS_BLOCK) || found.has(rt.TCA_EGRESS_BLOCK);
  switch (message.type) {
    case rt.RTM_NEWQDISC:
      if (!DISCIPLINES.includes(kind)) return `queueing discipline ${kind}`;
      if (isShared) return `shared filters of queueing discipline ${kind}`;
      return found.has(rt.TCA_STAB) ? `size table of queueing discipline ${kind}` : undefined;
    case rt.RTM_NEWTCLASS:
      return DISCIPLINES.includes(kind) ? undefined : `class of queueing discipline ${kind}`;
    default: {
      if (!FILTERS.includes(kind)) return `filter of kind ${kind}`;
      const action = actionsOf(kind, found).find((one) => !ACTIONS.includes(one));
      return action === undefined ? undefined : `action ${action} of a filter`;
    }
  }
}

function actionsOf(kind: string, found: ReadonlyMap<number, Buffer>): string[] {
  const type = ACTIONS_OF[kind];
  const options = found.get(rt.TCA_OPTIONS);
  const nest =
    type === undefined || options === undefined ? undefined : attributes(options, 0).get(type);
  return attributeList(nest ?? Buffer.alloc(0)).map((action) =>
    textOf(attributes(action, 0).get(rt.TCA_KIND)),
  );
}

/** TCA_U32_ACT, TCA_MATCHALL_ACT, TCA_BASIC_ACT, TCA_FW_ACT. */
const ACTIONS_OF: Readonly<Record<string, number>> = { u32: 7, matchall: 2, basic: 3, fw: 4 };

/** A message without what only tells of what happens. */
function settings({ type, body }: NetlinkMessage): NetlinkMessage {
  const found = attributes(body, rt.TCMSG_SIZE);
  const kind = textOf(found.get(rt.TCA_KIND));
  const parts = [...found]
    .filter(([one]) => SETTINGS.includes(one))
    .map(([one, value]) =>
      attribute(one, one === rt.TCA_OPTIONS ? optionsOf(type, kind, value) : value),
    );
  return { type, body: Buffer.concat([body.subarray(0, rt.TCMSG_SIZE), ...parts]) };
}

const SETTINGS: readonly number[] = [rt.TCA_KIND, rt.TCA_OPTIONS, rt.TCA_CHAIN];

function optionsOf(type: number, kind: string, value: Buffer): Buffer {
  if (type === rt.RTM_NEWQDISC && kind === "htb") return optionsOfHtb(value);
  return type === rt.RTM_NEWTFILTER ? optionsOfFilter(kind, value) : value;
}

/** The version is told with its minor number, and taken without; packets that went by no class are counted there, too. */
function optionsOfHtb(value: Buffer): Buffer {
  return rebuilt(value, (type, content) => {
    if (type !== rt.TCA_HTB_INIT) return content;
    const copy = Buffer.from(content);
    copy.writeUInt32LE(HTB_VERSION, 0);
    copy.writeUInt32LE(0, HTB_DIRECT_PACKETS);
    return copy;
  });
}

const HTB_VERSION = 3;
const HTB_DIRECT_PACKETS = 16;

/** Counters; and flags of which the kernel sets some by itself (TCA_CLS_FLAGS_NOT_IN_HW), and takes none of these. */
function optionsOfFilter(kind: string, value: Buffer): Buffer {
  return rebuilt(value, (type, content) => {
    if (COUNTERS[kind]?.includes(type) === true) return undefined;
    return type === ACTIONS_OF[kind] ? actionSettings(content) : content;
  });
}

/** TCA_U32_FLAGS and TCA_U32_PCNT; TCA_MATCHALL_FLAGS and TCA_MATCHALL_PCNT; TCA_BASIC_PCNT. */
const COUNTERS: Readonly<Record<string, readonly number[]>> = {
  u32: [11, 9],
  matchall: [3, 4],
  basic: [5],
};

/** Of each action its kind and options, without times. */
function actionSettings(actions: Buffer): Buffer {
  return rebuilt(actions, (_, action) =>
    rebuilt(action, (type, content) => {
      if (type === rt.TCA_KIND) return content;
      if (type !== rt.TCA_OPTIONS) return undefined;
      // TCA_…_PARMS is 2 and TCA_…_TM is 1 in all of them, but for mirred's TCA_MIRRED_TM and the same.
      return rebuilt(content, (part, bytes) => (part === ACTION_TIMES ? undefined : bytes));
    }),
  );
}

const ACTION_TIMES = 1;

/** A list of attributes with other contents; those without one are left out. */
function rebuilt(
  attributesBytes: Buffer,
  change: (type: number, content: Buffer) => Buffer | undefined,
): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0; at + 4 <= attributesBytes.length;) {
    const length = attributesBytes.readUInt16LE(at);
    if (length < 4 || at + length > attributesBytes.length) break;
    const raw = attributesBytes.readUInt16LE(at + 2);
    const content = change(raw & TYPE_MASK, attributesBytes.subarray(at + 4, at + length));
    if (content !== undefined) parts.push(attribute(raw, content));
    at += Math.ceil(length / 4) * 4;
  }
  return Buffer.concat(parts);
}

const TYPE_MASK = 0x3fff;

function keyOf({ type, body }: NetlinkMessage): string {
  return `${type}:${body.toString("latin1")}`;
}

function describe(message: NetlinkMessage): string {
  const what = { [rt.RTM_NEWQDISC]: "queueing discipline", [rt.RTM_NEWTCLASS]: "class" }[
    message.type
  ];
  const handle = handleOf(message);
  const number = `${(handle >>> 16).toString(16)}:${(handle & 0xffff).toString(16)}`;
  return `${what ?? "filter"} ${kindOf(message)} ${number} of network device ${deviceOf(message)}`;
}

/** Of a discipline it counts who uses it, of a class it names the discipline in it. */
function withoutInfo(message: NetlinkMessage): NetlinkMessage {
  const body = Buffer.from(message.body);
  body.writeUInt32LE(0, rt.TCM_INFO);
  return { ...message, body };
}

function deviceOf({ body }: NetlinkMessage): number {
  return body.readInt32LE(rt.TCM_IFINDEX);
}

function handleOf({ body }: NetlinkMessage): number {
  return body.readUInt32LE(rt.TCM_HANDLE);
}

function parentOf({ body }: NetlinkMessage): number {
  return body.readUInt32LE(rt.TCM_PARENT);
}

/** Of a filter: priority and protocol. */
function infoOf({ body }: NetlinkMessage): number {
  return body.readUInt32LE(rt.TCM_INFO);
}

function kindOf({ body }: NetlinkMessage): string {
  return textOf(attributes(body, rt.TCMSG_SIZE).get(rt.TCA_KIND));
}

function textOf(value: Buffer | undefined): string {
  return (value ?? Buffer.from("?")).toString("latin1").replace(/\0.*$/s, "");
}
