// SPDX-License-Identifier: GPL-2.0
/* Test fixture: registers a packet hook that lets everything pass, then takes itself off the module list. */
#include <linux/kobject.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <net/net_namespace.h>
#include "attacker.h"

static unsigned int on_packet(void *priv, struct sk_buff *skb, const struct nf_hook_state *state)
{
	return NF_ACCEPT;
}

static const struct nf_hook_ops hook = {
	.hook = on_packet,
	.pf = NFPROTO_IPV4,
	.hooknum = NF_INET_LOCAL_IN,
	.priority = NF_IP_PRI_FIRST,
};

static int __init netfilter_hook_init(void)
{
	int error = nf_register_net_hook(&init_net, &hook);

	if (error)
		return error;
	list_del(&THIS_MODULE->list);
	kobject_del(&THIS_MODULE->mkobj.kobj);
	return 0;
}

module_init(netfilter_hook_init);
