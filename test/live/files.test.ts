import { expect, test } from "vitest";
import { again, type CycleStats } from "./cycle.ts";
import { endWithTest, start, testRoom } from "./suite.ts";

testRoom("files");

test("10,000 descriptors of ten kinds take as many stops as 100", { timeout: 60_000 }, async () => {
  const stops: (readonly number[])[] = [];
  const onStats = ({ dump, restore }: CycleStats): void =>
    void stops.push([dump.stops, restore.stops]);
  for (const count of ["100", "10000"]) {
    const program = endWithTest(await again(await start("many_kinds", [count]), { onStats }));
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  }
  expect(stops[1]).toEqual(stops[0]);
});
