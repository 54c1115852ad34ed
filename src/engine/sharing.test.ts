import { expect, test } from "vitest";
import { CLONE_FS, CLONE_VM } from "../sys/abi/sched.ts";
import { planTree } from "./plan-tree.ts";
import { planSharing, sharedNames } from "./sharing.ts";

/** pid, parent, the numbers of its memory and of its directories; everything else is its own. */
type Row = readonly [number, number, number, number];

function plan(rows: readonly Row[]): { plan: ReturnType<typeof planSharing>; siblings: number[] } {
  const tasks = rows.map(([pid, ppid, vm, fs]) => ({
    pid,
    ppid,
    pgid: 10,
    sid: 10,
    zombie: false,
    ids: { vm_id: vm, fs_id: fs, files_id: pid, sighand_id: pid },
  }));
  const names = sharedNames(tasks.map(({ pid, ids }) => ({ pid, live: { ids } })));
  const tree = planTree(
    tasks.map((task) => ({ ...task, shares: names.get(task.pid) ?? [] })),
    { shellJob: false },
  );
  return {
    plan: planSharing(tree, new Map(tasks.map((task) => [task.pid, task]))),
    siblings: tree.nodes.filter(({ viaSibling }) => viaSibling).map(({ pid }) => pid),
  };
}

test("planSharing() has a child made with the flags of what it shares with its parent", () => {
  const { plan: planned, siblings } = plan([
    [10, 0, 1, 1],
    [11, 10, 1, 2],
    [12, 11, 1, 2],
    [13, 10, 3, 1],
  ]);
  expect([10, 11, 12, 13].map((pid) => planned.get(pid)?.cloneFlags)).toEqual([
    0,
    CLONE_VM,
    CLONE_VM | CLONE_FS,
    CLONE_FS,
  ]);
  expect(planned.get(12)?.memoryOf).toEqual([10, 11, 12]);
  expect(planned.get(12)?.directoriesOf).toEqual([11, 12]);
  expect(siblings).toEqual([]);
});

test("planSharing() has siblings make each other what their parent has not", () => {
  const { plan: planned, siblings } = plan([
    [10, 0, 1, 1],
    [11, 10, 2, 2],
    [12, 10, 2, 3],
  ]);
  expect(planned.get(12)?.cloneFlags).toBe(CLONE_VM);
  expect(siblings).toEqual([12]);
});

test("planSharing() refuses what no clone can make", () => {
  const cousins: Row[] = [
    [10, 0, 1, 1],
    [11, 10, 2, 2],
    [12, 10, 3, 3],
    [13, 11, 4, 4],
    [14, 12, 4, 5],
  ];
  expect(() => plan(cousins)).toThrow(
    "cannot restore pid 14: it shares its memory with pid 13, which is neither its parent nor its sibling",
  );
});
