import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { GENERATED_FILE, renderGenerated } from "./generate-schema.ts";

it("the generated messages are those of the schema: run `npm run generate`", () => {
  expect(readFileSync(GENERATED_FILE, "utf8")).toBe(renderGenerated());
});
