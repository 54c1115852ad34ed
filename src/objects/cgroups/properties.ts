// The files of a cgroup that are saved: its settings, without counters and state. Kernel documentation:
// admin-guide/cgroup-v1/*.rst, admin-guide/cgroup-v2.rst.

/** Settings by v1 controller. Order matters: memsw.limit_in_bytes cannot be lower than limit_in_bytes. */
const V1: Readonly<Record<string, readonly string[]>> = {
  cpu: [
    "cpu.shares",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.rt_period_us",
    "cpu.rt_runtime_us",
  ],
  memory: [
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.swappiness",
    "memory.soft_limit_in_bytes",
    "memory.move_charge_at_immigrate",
    "memory.oom_control",
    "memory.use_hierarchy",
    "memory.kmem.limit_in_bytes",
    "memory.kmem.tcp.limit_in_bytes",
  ],
  cpuset: [
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.memory_migrate",
    "cpuset.cpu_exclusive",
    "cpuset.mem_exclusive",
    "cpuset.mem_hardwall",
    "cpuset.memory_spread_page",
    "cpuset.memory_spread_slab",
    "cpuset.sched_load_balance",
    "cpuset.sched_relax_domain_level",
  ],
  blkio: ["blkio.weight"],
  net_cls: ["net_cls.classid"],
  net_prio: ["net_prio.ifpriomap"],
  pids: ["pids.max"],
  devices: ["devices.list"],
  hugetlb: [
    "hugetlb.64KB.limit_in_bytes",
    "hugetlb.2MB.limit_in_bytes",
    "hugetlb.32MB.limit_in_bytes",
    "hugetlb.1GB.limit_in_bytes",
  ],
};

const V1_ALL = ["cgroup.clone_children", "notify_on_release", "cgroup.procs", "tasks"] as const;

/**
 * Of v2. CRIU knows the cgroup.* ones only and loses the limits; it restores any that stands in an image.
 * cgroup.subtree_control of a directory comes before the settings of its children, which it brings about.
 */
const V2 = [
  "cgroup.type",
  "cgroup.subtree_control",
  "cgroup.max.descendants",
  "cgroup.max.depth",
  "cgroup.freeze",
] as const;
const V2_LIMITS = [
  "cpu.idle",
  "cpu.max",
  "cpu.max.burst",
  "cpu.weight",
  "cpuset.cpus",
  "cpuset.mems",
  "memory.min",
  "memory.low",
  "memory.high",
  "memory.max",
  "memory.swap.high",
  "memory.swap.max",
  "memory.zswap.max",
  "memory.oom.group",
  "pids.max",
  "io.max",
  "io.weight",
  "hugetlb.64KB.max",
  "hugetlb.2MB.max",
  "hugetlb.32MB.max",
  "hugetlb.1GB.max",
] as const;

const V2_CONTROLLERS: ReadonlySet<string> = new Set(
  V2_LIMITS.map((name) => name.slice(0, name.indexOf("."))),
);

/** The controller of v2 that a setting belongs to; undefined for those that every cgroup has. */
export function controllerOf(property: string): string | undefined {
  const controller = property.slice(0, property.indexOf("."));
  return V2_CONTROLLERS.has(controller) ? controller : undefined;
}

/** Changes to the built-in lists: what --cgroup-props asks for. */
export type PropertyLists = ReadonlyMap<
  string,
  { readonly strategy: "merge" | "replace"; readonly properties: readonly string[] }
>;

/** Names of the files to save for a cgroup of a hierarchy. */
export function propertyNames(
  hierarchy: string,
  options: { readonly changes: PropertyLists; readonly dumpedControllers?: readonly string[] },
): string[] {
  const controllers =
    hierarchy === ""
      ? new Set([...V2_CONTROLLERS, ...options.changes.keys()])
      : hierarchy.split(",");
  // A change may be for the other version's files: those are then not there, and not saved.
  const own = [...controllers].flatMap((controller) => {
    const builtIn =
      hierarchy === ""
        ? V2_LIMITS.filter((name) => name.startsWith(`${controller}.`))
        : (V1[controller] ?? []);
    if (options.dumpedControllers !== undefined && !options.dumpedControllers.includes(controller))
      return [];
    const change = options.changes.get(controller);
    if (change === undefined) return builtIn;
    return change.strategy === "replace" ? change.properties : [...builtIn, ...change.properties];
  });
  return [...new Set([...own, ...(hierarchy === "" ? V2 : V1_ALL)])];
}

/** Settings of v1 that must be there before a task enters: without cpus and mems a cpuset takes none (ENOSPC). */
const BEFORE_TASKS: ReadonlySet<string> = new Set([
  "cpuset.cpus",
  "cpuset.mems",
  "devices.list",
  "memory.kmem.limit_in_bytes",
  "memory.swappiness",
  "memory.oom_control",
  "memory.use_hierarchy",
]);

/** Whether a setting is written before tasks enter. A v2 cgroup becomes threaded only while it is empty. */
export function isBeforeTasks(hierarchy: string, name: string): boolean {
  return hierarchy === "" ? name === "cgroup.type" : BEFORE_TASKS.has(name);
}

/** Lists of members: they are in images for their permissions. */
export function isMemberList(name: string): boolean {
  return name === "cgroup.procs" || name === "tasks";
}

/** Whether the cgroup is frozen: saved as found, which may be the doing of the one who asked for the dump. */
export function isFreezerState(name: string): boolean {
  return name === "freezer.state" || name === "cgroup.freeze";
}
