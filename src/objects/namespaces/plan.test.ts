import { expect, test } from "vitest";
import type { LoadedSet } from "../../images/check-set.ts";
import type { TaskKobjIdsEntry } from "../../images/schema/messages.generated.ts";
import { externalKey, NAMESPACE_KINDS } from "./kinds.ts";
import { planNamespaces } from "./plan.ts";
import { idInside, idsInside, parseMap } from "./user.ts";

const HOST = Object.fromEntries(NAMESPACE_KINDS.map(({ field }, index) => [field, index + 1]));

/** A set of tasks with namespaces that differ from the dumper's as told. */
function setOf(
  tasks: readonly Partial<TaskKobjIdsEntry>[],
  more: { readonly netKey?: string; readonly clocks?: string } = {},
): LoadedSet {
  return {
    rootPid: 1,
    inventory: { root_ids: HOST },
    tasks: new Map(
      tasks.map((ids, index) => [
        index + 1,
        { pid: index + 1, live: { ids: { ...HOST, ...ids } } },
      ]),
    ),
    timens: more.clocks === undefined ? undefined : { clocks: more.clocks },
    namespaces: {
      net: new Map(more.netKey === undefined ? [] : [[10, { netns: { ext_key: more.netKey } }]]),
      pid: new Map(),
    },
  } as unknown as LoadedSet;
}

function planned(set: LoadedSet, options: Parameters<typeof planNamespaces>[1] = {}): string[] {
  return planNamespaces(set, options).all.map(
    ({ kind, id, role, origin }) => `${kind} ${id} ${role} ${origin.how}`,
  );
}

test("a tree in the dumper's namespaces gets none", () => {
  expect(planned(setOf([{}]))).toEqual([]);
});

test("the root's namespaces are made, and mount and network namespaces of others", () => {
  const root = { uts_ns_id: 9, net_ns_id: 10, mnt_ns_id: 11 };
  const set = setOf([root, root, { ...root, net_ns_id: 12 }, { ...root, mnt_ns_id: 13 }]);
  expect(planned(set)).toEqual([
    "net 10 root new",
    "net 12 nested new",
    "uts 9 root new",
    "mnt 11 root new",
    "mnt 13 nested new",
  ]);
  const plan = planNamespaces(set, {});
  expect(plan.byId("net", 12)).toMatchObject({ role: "nested" });
  expect(plan.byId("net", HOST["net_ns_id"])).toBeUndefined();
  expect(plan.made("ipc")).toBeUndefined();
});

test("a task in the engine's namespace, when the root task has another, is refused", () => {
  expect(() => planned(setOf([{ net_ns_id: 10 }, {}]))).toThrow("another net namespace");
});

test("time namespaces are known by who lives in them, and by who has made them for his children", () => {
  const forChildren = { time_ns_id: 9, children_time_ns_id: 10 };
  const set = setOf([{ time_ns_id: 9 }, { time_ns_id: 10 }, forChildren]);
  expect(planned(setOf([{ time_ns_id: 9 }, { time_ns_id: 10 }]))).toEqual([
    "time 9 root new",
    "time 10 nested new",
  ]);
  const { all } = planNamespaces(set, {});
  expect(all.map(({ id, maker }) => [id, maker])).toEqual([
    [9, undefined],
    [10, 3],
  ]);
  expect(planNamespaces(setOf([{ children_time_ns_id: 11 }]), {}).all).toMatchObject([
    { kind: "time", id: 11, role: "nested", maker: 1, origin: { how: "new" } },
  ]);
});

test("external namespaces come from outside, and joined ones win over those of the images", () => {
  const set = setOf([{ net_ns_id: 10, ipc_ns_id: 9 }], { netKey: "extRootNetNS" });
  expect(planNamespaces(set, {}).ofRoot("net")?.origin).toEqual({
    how: "external",
    key: "extRootNetNS",
  });
  const by = { kind: "ipc" as const, path: "/proc/7/ns/ipc" };
  expect(planNamespaces(set, { join: [by] }).ofRoot("ipc")?.origin).toEqual({ how: "joined", by });
  expect(planNamespaces(set, { join: [by] }).made("ipc")).toBeUndefined();
});

test("a clone gets a pid namespace of its own, or none where it had one", () => {
  expect(planned(setOf([{}]), { newPidNamespace: true })).toEqual(["pid 0 root new"]);
  expect(planned(setOf([{ pid_ns_id: 9 }]))).toEqual(["pid 9 root new"]);
  expect(planned(setOf([{ pid_ns_id: 9 }]), { newPidNamespace: false })).toEqual([]);
});

test("other clocks than those of the dump need a time namespace", () => {
  const set = setOf([{}], { clocks: "boot-1 0 0" });
  expect(planned(set, { clocks: "boot-1 0 0" })).toEqual([]);
  expect(planned(set, { clocks: "boot-2 0 0" })).toEqual(["time 0 root new"]);
  expect(planned(set, { clocks: undefined })).toEqual([]);
});

test("--external names a namespace by kind and inode", () => {
  expect(externalKey(["mnt[]", "net[12]:a", "net[123]:b:c"], "net", 123)).toBe("b:c");
  expect(externalKey(["net[12]:a"], "pid", 12)).toBeUndefined();
});

test("ids are translated into a user namespace by its maps", () => {
  const map = parseMap("         0     100000       1000\n      5000     200000         10\n");
  expect([100_000, 100_999, 101_000, 200_003, 0].map((id) => idInside(map, id))).toEqual([
    0,
    999,
    undefined,
    5003,
    undefined,
  ]);
  expect(parseMap("")).toEqual([]);
  expect(idsInside(undefined, { uid: 7, gid: 8 })).toEqual({ uid: 7, gid: 8 });
});
