import fc from "fast-check";
import { expect, test } from "vitest";
import { RepriseError } from "../errors.ts";
import { planTree, type TreeTask } from "./plan-tree.ts";
import {
  OUTSIDE_PGID,
  OUTSIDE_SID,
  playHistory,
  playPlan,
  type Step,
} from "./tree-history.fixture.ts";

/** pid, parent, group, session, and a Z for zombies. */
type Row = readonly [number, number, number, number, "Z"?];

function tree(rows: readonly Row[]): TreeTask[] {
  return rows.map(([pid, ppid, pgid, sid, state]) => ({
    pid,
    ppid,
    pgid,
    sid,
    zombie: state === "Z",
  }));
}

const TREES: Readonly<Record<string, readonly Row[]>> = {
  "one process": [[10, 0, 10, 10]],
  "a chain": [
    [10, 0, 10, 10],
    [11, 10, 10, 10],
    [12, 11, 10, 10],
  ],
  "a child with a lower pid than its parent": [
    [50, 0, 50, 50],
    [9, 50, 50, 50],
  ],
  "a session leader with members": [
    [10, 0, 10, 10],
    [11, 10, 11, 11],
    [12, 11, 11, 11],
    [13, 11, 13, 11],
    [14, 13, 13, 11],
  ],
  "a child that is older than its parent's session": [
    [10, 0, 10, 10],
    [11, 10, 11, 11],
    [12, 11, 10, 10],
    [13, 11, 11, 11],
  ],
  "an orphan whose session's leader is below its parent's child": [
    [10, 0, 10, 10],
    [20, 10, 10, 10],
    [11, 20, 11, 11],
    [12, 10, 11, 11],
  ],
  "an orphan of a subreaper": [
    [10, 0, 10, 10],
    [20, 10, 10, 10],
    [30, 20, 10, 10],
    [11, 30, 11, 11],
    [12, 20, 11, 11],
    [13, 12, 13, 13],
  ],
  "children of two older sessions, nested": [
    [10, 0, 10, 10],
    [11, 10, 11, 11],
    [12, 11, 12, 12],
    [13, 12, 11, 11],
    [14, 11, 10, 10],
  ],
  "a session leader whose child leads one too, made before and after": [
    [10, 0, 10, 10],
    [11, 10, 11, 11],
    [12, 11, 12, 12],
  ],
  "a member of a session whose leader is dead (a daemon of two forks)": [
    [10, 0, 10, 10],
    [21, 10, 20, 20],
  ],
  "two members of a session whose leader is dead": [
    [10, 0, 10, 10],
    [21, 10, 20, 20],
    [22, 10, 20, 20],
    [23, 22, 20, 20],
  ],
  "a member of a group whose leader is dead": [
    [10, 0, 10, 10],
    [21, 10, 20, 10],
  ],
  "a dead group's members in a dead session": [
    [10, 0, 10, 10],
    [21, 10, 30, 20],
    [22, 10, 20, 20],
  ],
  "an orphan beside the leader of its session": [
    [10, 0, 10, 10],
    [11, 10, 11, 11],
    [12, 10, 11, 11],
  ],
  "an orphan of a subreaper that is no root": [
    [10, 0, 10, 10],
    [11, 10, 10, 10],
    [12, 11, 12, 12],
    [13, 11, 12, 12],
  ],
  "a session leader that is a zombie, with a member beside it": [
    [10, 0, 10, 10],
    [11, 10, 11, 11, "Z"],
    [12, 10, 11, 11],
  ],
  "zombies in groups and sessions of their own": [
    [10, 0, 10, 10],
    [11, 10, 11, 10, "Z"],
    [12, 10, 12, 12, "Z"],
    [13, 10, 11, 10, "Z"],
    [14, 10, 20, 10, "Z"],
  ],
  "a group that children of different parents are in": [
    [10, 0, 10, 10],
    [11, 10, 12, 10],
    [12, 10, 12, 10],
    [13, 11, 10, 10],
    [14, 12, 10, 10],
  ],
};

const JOBS: Readonly<Record<string, readonly Row[]>> = {
  "a job of a shell": [
    [10, 0, 10, OUTSIDE_SID],
    [11, 10, 10, OUTSIDE_SID],
  ],
  "a job in the shell's own group": [
    [10, 0, OUTSIDE_PGID, OUTSIDE_SID],
    [11, 10, OUTSIDE_PGID, OUTSIDE_SID],
  ],
  "a group leader whose child is in the shell's group": [
    [10, 0, OUTSIDE_PGID, OUTSIDE_SID],
    [11, 10, 11, OUTSIDE_SID],
    [12, 11, OUTSIDE_PGID, OUTSIDE_SID],
    [13, 11, 11, OUTSIDE_SID],
  ],
  "a session leader in a job, with a child that is older than its session": [
    [10, 0, 10, OUTSIDE_SID],
    [11, 10, 11, 11],
    [12, 11, 10, OUTSIDE_SID],
  ],
};

test.each(Object.entries(TREES))("%s comes back", (_name, rows) => {
  expectRepeated(tree(rows), { shellJob: false });
});

test.each(Object.entries(JOBS))("with shellJob: %s comes back", (_name, rows) => {
  expectRepeated(tree(rows), { shellJob: true });
});

test.each(Object.entries(JOBS))("without shellJob: %s is refused", (_name, rows) => {
  const error = refusal(tree(rows), { shellJob: false });
  expect(error).toMatchObject({ code: "UNSUPPORTED", pid: 10 });
  expect(error.message).toContain(`session ${OUTSIDE_SID} was outside`);
  expect(error.hint).toContain("--shell-job");
});

test("a group whose first leader is in another one is refused", () => {
  const error = refusal(
    tree([
      [10, 0, 10, 10],
      [11, 10, 10, 10],
      [12, 11, 11, 10],
    ]),
    { shellJob: false },
  );
  expect(error).toMatchObject({ code: "UNSUPPORTED", pid: 12 });
  expect(error.message).toContain("group 11");
});

test("a member of a session that no process could be born into is refused", () => {
  // Session 11 begins below pid 20, and the member's parent stands beside it.
  const error = refusal(
    tree([
      [10, 0, 10, 10],
      [20, 10, 10, 10],
      [11, 20, 11, 11],
      [30, 10, 10, 10],
      [12, 30, 11, 11],
    ]),
    { shellJob: false },
  );
  expect(error).toMatchObject({ code: "UNSUPPORTED", pid: 12 });
  expect(error.message).toContain("in session 11 with parent 30");
  expect(error.hint).toContain("ps -eo");
});

test("a task whose parent is missing is a broken image", () => {
  const rows: readonly Row[] = [
    [10, 0, 10, 10],
    [11, 99, 10, 10],
  ];
  expect(refusal(tree(rows), { shellJob: false })).toMatchObject({ code: "BAD_IMAGE" });
  expect(refusal([], { shellJob: false })).toMatchObject({ code: "BAD_IMAGE" });
});

test("helpers stand for dead leaders only, once each", () => {
  const plan = planTree(tree(TREES["two members of a session whose leader is dead"] ?? []), {
    shellJob: false,
  });
  const helpers = plan.nodes.filter(({ role }) => role === "helper");
  expect(helpers.map(({ pid, ppid }) => [pid, ppid])).toEqual([[20, 10]]);
});

test("every creator stands before those it makes, and everyone is made once", () => {
  for (const rows of Object.values(TREES)) {
    const { nodes } = planTree(tree(rows), { shellJob: false });
    const made = nodes.flatMap((node) => [...node.early, ...node.late]);
    expect(new Set(nodes).size).toBe(nodes.length);
    expect(new Set([nodes[0], ...made])).toEqual(new Set(nodes));
    for (const node of nodes)
      for (const child of [...node.early, ...node.late])
        expect(nodes.indexOf(node)).toBeLessThan(nodes.indexOf(child));
  }
});

const KINDS = ["fork", "fork", "fork", "setsid", "setpgid", "exit", "subreaper"] as const;
const steps = fc.array(
  fc.record({ kind: fc.constantFrom(...KINDS), who: fc.nat(50), whom: fc.nat(50) }),
  { maxLength: 30 },
) as fc.Arbitrary<Step[]>;
const pids = fc.uniqueArray(fc.integer({ min: 10, max: 99 }), { minLength: 12, maxLength: 12 });

test("what a tree has become by any history comes back, or is refused", () => {
  let refused = 0;
  const runs = 3000;
  fc.assert(
    fc.property(steps, pids, fc.boolean(), (history, numbers, shellJob) => {
      const tasks = playHistory(history, numbers, { shellJob });
      try {
        planTree(tasks, { shellJob });
      } catch (error) {
        expect(error).toMatchObject({ code: "UNSUPPORTED" });
        refused++;
        return;
      }
      expectRepeated(tasks, { shellJob });
    }),
    { numRuns: runs, seed: 1 },
  );
  // Refusing is for the rare cases.
  expect(refused).toBeLessThan(runs / 200);
});

/** Plans the tree and makes it, whoever of a level is quicker. */
function expectRepeated(tasks: readonly TreeTask[], options: { shellJob: boolean }): void {
  const wanted = sorted(tasks);
  expect(sorted(playPlan(planTree(tasks, options), (nodes) => nodes))).toEqual(wanted);
  expect(sorted(playPlan(planTree(tasks, options), (nodes) => nodes.toReversed()))).toEqual(wanted);
}

function sorted(tasks: readonly TreeTask[]): TreeTask[] {
  return [...tasks].sort((a, b) => a.pid - b.pid);
}

function refusal(tasks: readonly TreeTask[], options: { shellJob: boolean }): RepriseError {
  try {
    planTree(tasks, options);
  } catch (error) {
    if (error instanceof RepriseError) return error;
    throw error;
  }
  throw new Error("the plan was not refused");
}
