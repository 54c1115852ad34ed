// What the entry of a network device says, in the form in which rtnetlink takes it (include/uapi/linux/if_link.h). Kinds that CRIU's
// format has no message for keep the kernel's own attributes; of those only what can be set is given back.

import { RepriseError } from "../../errors.ts";
import type { NetDeviceEntry, SitEntry } from "../../images/schema/messages.generated.ts";
import { NLA_F_NESTED } from "../../sys/abi/netlink.ts";
import * as rt from "../../sys/abi/rtnetlink.ts";
import { attribute, attributes, u32 } from "../../sys/netlink.ts";

/** Name, MTU and address. */
export function basics(device: NetDeviceEntry): Buffer[] {
  return [
    attribute(rt.IFLA_IFNAME, device.name),
    attribute(rt.IFLA_MTU, u32(device.mtu)),
    ...(device.address === undefined ? [] : [attribute(rt.IFLA_ADDRESS, device.address)]),
  ];
}

/** What the device has besides that every kind of device can have; without its other names, which are set on their own. */
export function further({ link_attributes: saved }: NetDeviceEntry): Buffer[] {
  const found = attributes(Buffer.from(saved ?? []), 0);
  return chosen(
    found,
    [...found.keys()].filter((type) => type !== rt.IFLA_PROP_LIST),
  );
}

/** Other names (ip-link(8), altname), as the kernel told them. */
export function otherNames({ link_attributes: saved }: NetDeviceEntry): Buffer | undefined {
  return attributes(Buffer.from(saved ?? []), 0).get(rt.IFLA_PROP_LIST);
}

/** The addresses whose packets a macvlan or macvtap in source mode takes, and the queue that all of them share. */
export function macvlanFurther(data: ReadonlyMap<number, Buffer>): Buffer[] {
  const sources = data.get(rt.IFLA_MACVLAN_MACADDR_DATA) ?? Buffer.alloc(0);
  if (sources.length === 0) return [];
  return [
    attribute(rt.IFLA_MACVLAN_MACADDR_MODE, u32(rt.MACVLAN_MACADDR_SET)),
    attribute(rt.IFLA_MACVLAN_MACADDR_DATA | NLA_F_NESTED, sources),
  ];
}

/** The kind of the device and its data, as the kernel told them (IFLA_LINKINFO). */
export function infoOf({ link_info: info }: NetDeviceEntry): Map<number, Buffer> {
  return attributes(Buffer.from(info ?? []), 0);
}

/** Settings that the kernel tells and does not take: IFLA_MACVLAN_MACADDR_…, IFLA_MACVLAN_BC_QUEUE_LEN_USED. */
export const TOLD_ONLY: Readonly<Record<string, readonly number[]>> = { macvtap: [4, 5, 6, 8] };

/** IFLA_BR_… that can be set: the others tell what the bridge does. */
export const BRIDGE_SETTINGS: readonly number[] = [
  1, 2, 3, 4, 5, 6, 7, 8, 9, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39,
  41, 42, 43, 44, 45,
];
/** IFLA_BRPORT_…, likewise. */
export const BRIDGE_PORT_SETTINGS: readonly number[] = [
  2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 25, 27, 28, 29, 30, 31, 32, 33,
];

/** Of some attributes those of the wanted types. */
export function chosen(data: ReadonlyMap<number, Buffer>, wanted: readonly number[]): Buffer[] {
  return wanted.flatMap((type) => {
    const value = data.get(type);
    return value === undefined ? [] : [attribute(type, value)];
  });
}

/** The data of a tunnel that carries IPv6 in IPv4. @throws RepriseError BAD_IMAGE */
export function sitData(device: NetDeviceEntry): Buffer[] {
  const { sit } = device;
  if (sit === undefined) throw bad(device, "its tunnel is missing");
  const numbers: readonly (readonly [number, keyof SitEntry, number])[] = [
    [rt.IFLA_IPTUN_LINK, "link", 4],
    [rt.IFLA_IPTUN_TTL, "ttl", 1],
    [rt.IFLA_IPTUN_TOS, "tos", 1],
    [rt.IFLA_IPTUN_FLAGS, "flags", 2],
    [rt.IFLA_IPTUN_PROTO, "proto", 1],
    [rt.IFLA_IPTUN_ENCAP_TYPE, "encap_type", 2],
    [rt.IFLA_IPTUN_ENCAP_FLAGS, "encap_flags", 2],
    [rt.IFLA_IPTUN_ENCAP_SPORT, "encap_sport", 2],
    [rt.IFLA_IPTUN_ENCAP_DPORT, "encap_dport", 2],
    [rt.IFLA_IPTUN_6RD_PREFIXLEN, "rd_prefixlen", 2],
    [rt.IFLA_IPTUN_6RD_RELAY_PREFIXLEN, "relay_prefixlen", 2],
  ];
  const words: readonly (readonly [number, readonly number[]])[] = [
    [rt.IFLA_IPTUN_LOCAL, sit.local],
    [rt.IFLA_IPTUN_REMOTE, sit.remote],
    [rt.IFLA_IPTUN_6RD_PREFIX, sit.rd_prefix],
    [rt.IFLA_IPTUN_6RD_RELAY_PREFIX, sit.relay_prefix],
  ];
  return [
    ...numbers.flatMap(([type, field, size]) => {
      const value = sit[field];
      return typeof value === "number" ? [attribute(type, u32(value).subarray(0, size))] : [];
    }),
    ...words.flatMap(([type, list]) =>
      list.length === 0 ? [] : [attribute(type, Buffer.concat(list.map(u32)))],
    ),
    ...(sit.pmtudisc === true ? [attribute(rt.IFLA_IPTUN_PMTUDISC, Buffer.from([1]))] : []),
  ];
}

/** An entry that says what cannot be. */
export function bad({ name }: NetDeviceEntry, why: string): RepriseError {
  return new RepriseError("BAD_IMAGE", `cannot restore network device ${name}: ${why}`);
}
