'use strict';

const assert = require('node:assert/strict');
const { after, before, describe, it } = require('node:test');
const { DEADLINE_MS, refusal, startGateway } = require('./gateway');

describe('an opening handshake', { timeout: 4 * DEADLINE_MS }, () => {
  let gateway;
  before(async () => {
    gateway = await startGateway();
  });
  after(() => gateway.stop());

  it('tells the connection id in its answer, and as the first message where asked', async () => {
    const client = await gateway.connect('/echo?hello=true');
    assert.match(client.connectionId, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
    assert.equal(await client.read(), `{"connection":"${client.connectionId}"}`);
    const request = { connection: client.connectionId, data: 'for you' };
    assert.deepEqual(await gateway.api('send', request), { result: {} });
    assert.equal(await client.read(), 'for you');
    await client.close();
  });

  it('on another path is 404', async () => {
    assert.equal((await refusal(gateway.url('/nothing'))).status, 404);
  });

  it('for a channel that cannot be is 400 and says why', async () => {
    for (const name of ['x'.repeat(256), 'a%0Ab', '%FF', '%zz']) {
      const answer = await refusal(gateway.url(`/channels/${name}`));
      assert.equal(answer.status, 400, name);
      assert.match(answer.body, /channel/);
    }
  });

  it('in an old version is 426 and told the version that is spoken', async () => {
    const answer = await refusal(gateway.url('/echo'), { protocolVersion: 8 });
    assert.equal(answer.status, 426);
    assert.equal(answer.headers['sec-websocket-version'], '13');
  });

  it('from a page of a foreign origin is 403, and from one of the same host passes', async () => {
    const foreign = await refusal(gateway.url('/echo'), { origin: 'https://evil.example' });
    assert.equal(foreign.status, 403);
    const same = await gateway.connect('/echo', { origin: `http://${gateway.address}` });
    await same.close();
  });
});

describe('a gateway that is full', { timeout: 4 * DEADLINE_MS }, () => {
  it('answers with 503 and when to try again', async (test) => {
    const gateway = await startGateway('--max-connections=1');
    test.after(() => gateway.stop());
    const client = await gateway.connect('/echo');
    const answer = await refusal(gateway.url('/echo'));
    assert.equal(answer.status, 503);
    assert.ok(Number(answer.headers['retry-after']) > 0);
    client.send('not harmed');
    assert.equal(await client.read(), 'not harmed');
    await client.close();
  });
});
