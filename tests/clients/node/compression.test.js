'use strict';

const assert = require('node:assert/strict');
const { after, before, describe, it } = require('node:test');
const { DEADLINE_MS, startGateway } = require('./gateway');

const OFFERS = [
  true,
  { serverNoContextTakeover: true, clientNoContextTakeover: true },
  { serverMaxWindowBits: 10, clientMaxWindowBits: 10 },
  { threshold: 0, zlibDeflateOptions: { level: 9 } },
];

function document(number) {
  const items = Array.from({ length: 40 }, (_, item) => ({ id: number * 100 + item, name: 'a name' }));
  return JSON.stringify({ number, items });
}

for (const mode of ['shared', 'dedicated']) {
  describe(`compression that is ${mode}`, { timeout: 4 * DEADLINE_MS }, () => {
    let gateway;

    before(async () => {
      gateway = await startGateway('--compression', mode);
    });

    after(() => gateway.stop());

    for (const perMessageDeflate of OFFERS) {
      it(`is spoken by ws with ${JSON.stringify(perMessageDeflate)}`, async () => {
        const client = await gateway.connect('/echo', { perMessageDeflate });
        assert.equal(client.socket.extensions, 'permessage-deflate');
        for (let number = 0; number < 50; number += 1) {
          for (const message of [document(number), 'short', Buffer.alloc(3000, number)]) {
            client.send(message);
            assert.deepEqual(await client.read(), message);
          }
        }
        await client.close();
      });
    }

    it('reaches every subscriber, whatever it has offered', async () => {
      const clients = [];
      for (const perMessageDeflate of [false, ...OFFERS]) {
        clients.push(await gateway.connect('/channels/news', { perMessageDeflate }));
      }
      for (let number = 0; number < 30; number += 1) {
        clients[number % clients.length].send(document(number));
        for (const client of clients) assert.equal(await client.read(), document(number));
      }
      for (const client of clients) await client.close();
    });
  });
}
