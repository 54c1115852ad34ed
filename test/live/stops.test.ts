// The number of stops of a dump and of a restore does not grow with the number of objects that a task has.

import { expect, test } from "vitest";
import { again, type CycleOptions } from "./cycle.ts";
import { endWithTest, start, testRoom } from "./suite.ts";

testRoom("stops");

const KINDS = [
  "rings",
  "single",
  "polled",
  "deferred",
  "waits",
  "notify",
  "sysv",
  "aio",
  "timers",
  "areas",
  "signals",
  "marks",
  "packets",
  "tuns",
  "flight",
  "dead",
  "odds",
  "filters",
];

test(
  "of what is no file, 60 of each kind take as many stops as 1",
  { timeout: 60_000 },
  async () => {
    const few = await stopsOf("1");
    const many = await stopsOf("60");
    if (many.join() === few.join()) return;
    // Which of them is it?
    const grown: string[] = [];
    for (const kind of KINDS) {
      const stops = [await stopsOf(`1:${kind}`), await stopsOf(`60:${kind}`)];
      if (stops[0]?.join() !== stops[1]?.join()) grown.push(`${kind}: ${stops.join(" and ")}`);
    }
    expect({ grown, many }).toEqual({ grown: [], many: few });
  },
);

test("60 mounts take as many stops as 1", async () => {
  expect(await stopsOf("60:mounts")).toEqual(await stopsOf("1:mounts"));
});

/** Stops of a dump and of a restore. */
async function stopsOf(what: string): Promise<readonly number[]> {
  const stops: number[] = [];
  const options: CycleOptions = {
    onStats: ({ dump, restore }) => void stops.push(dump.stops, restore.stops),
    checkpoint: { fileLocks: true },
  };
  const program = endWithTest(await again(await start("many_rooms", [what]), options));
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
  return stops;
}
